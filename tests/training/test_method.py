"""What the Method base gives to every method."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from editkit.engine.atomic import write_bytes
from editkit.errors import UsageError, UserError
from editkit.training.artefact import Artefact, read_card
from editkit.training.editor import Editor
from editkit.training.method import slug
from editkit.training.update import Update
from editkit.types import EditRequest, EditResult
from tests.training.toys import Copy, new, start


def test_only_the_trained_part_is_saved_with_the_buffers_of_its_layers():
    names = set(new().trained_state())
    assert names == {
        "net.0.weight",
        "net.0.bias",
        "net.1.weight",
        "net.1.bias",
        "net.1.running_mean",
        "net.1.running_var",
        "net.1.num_batches_tracked",
    }


def test_only_the_trained_part_receives_gradients_and_training_mode():
    method = new()
    start(method, batch_size=2).run(method.dummy_batch())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in method.frozen.parameters())
    assert not method.frozen.training and not method.frozen[1].training and method.net.training
    assert not method.eval().net.training and method.train().net.training


def test_loading_names_what_does_not_fit():
    method = new()
    with pytest.raises(ValueError, match=r"7 names.*'net\.0\.bias'"):
        method.load_trained({})
    wrong = {**method.trained_state(), "net.0.bias": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"net\.0\.bias has shape \(5,\) in the file and \(4,\)"):
        method.load_trained(wrong)


def test_a_parameter_outside_the_module_or_in_two_groups_is_refused():
    class Stray(Copy):
        def trainable(self):
            return {"a": self.net.parameters(), "b": extra}

    extra = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="group 'b' holds"):
        Stray().trained_parameters()
    stray = Stray()
    extra = [stray.net[0].weight]
    with pytest.raises(ValueError, match="group 'b' holds"):
        stray.trained_parameters()


def test_export_writes_the_average_with_its_card(tmp_path):
    method = new()
    method.provenance = {"recipe": "toy/copy", "prompt": "an old face"}
    stepper = start(method, batch_size=2, ema=0.9)
    for _ in range(3):
        stepper.run(method.dummy_batch())
    (path,) = method.export(tmp_path)
    assert path.name == "toy-copy.safetensors"
    artefact = Artefact.load(path, strength=0.5)
    assert torch.equal(artefact.tensors["net.0.weight"], stepper.ema.averages["net"]["net.0.weight"])
    assert artefact.strength == 0.5 and artefact.card["images"] == 6 and artefact.card["prompt"] == "an old face"
    assert artefact.card["method"].endswith("toys.Copy") and read_card(path) == artefact.card
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["editkit"])["name"] == artefact.name == "toy/copy"


def test_an_export_can_be_read_by_whom_any_new_file_can(tmp_path):
    fresh = tmp_path / "fresh"
    fresh.touch()
    (path,) = new().export(tmp_path / "export")
    write_bytes(tmp_path / "bytes", b"x")
    assert path.stat().st_mode == (tmp_path / "bytes").stat().st_mode == fresh.stat().st_mode


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle in a zip", b"\x80\x04N."])
def test_what_is_no_artefact_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    for read in (Artefact.load, read_card):
        with pytest.raises(UserError, match=r"weights\.safetensors is not a (readable )?safetensors file") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no weights at"):
        Artefact.load(tmp_path / "none.safetensors")


def test_safetensors_without_a_card_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="carries no editkit card"):
        Artefact.load(tmp_path / "plain.safetensors")


def test_the_total_of_an_update_is_the_sum_of_the_means():
    update = Update("g", {"per sample": torch.tensor([1.0, 3.0]), "scalar": torch.tensor(0.5, dtype=torch.bfloat16)})
    assert update.total().item() == 2.5 and update.total().dtype == torch.float32
    with pytest.raises(ValueError, match="no losses"):
        Update("g", {}).total()


def test_an_editor_names_the_options_that_are_missing():
    class Paste(Editor):
        name = "pbe"
        needs = ("image", "mask", "references", "source_prompt")

        def edit(self, requests, state):
            return EditResult(torch.stack([request.image for request in requests]))

    request = EditRequest("a", image=torch.zeros(3, 4, 4))
    with pytest.raises(UsageError, match="^pbe needs --mask and --reference and --source-prompt$"):
        Paste().check([request])
    whole = request.with_(mask=torch.zeros(1, 4, 4), references=[torch.zeros(3, 4, 4)], source_prompt="x")
    Paste().check([whole])
    assert Paste().edit([whole], Paste().prepare([whole])).images.shape == (1, 3, 4, 4)


def test_a_method_without_optimizer_says_what_to_set():
    method = new(optimizer=None)
    with pytest.raises(ValueError, match=r"Copy has no optimizer; set method\.optimizer"):
        start(method, batch_size=1)


def test_slug():
    assert slug("An old face!") == "an-old-face" and slug("../..") == "unnamed"


def test_factories_are_called_per_group():
    seen = []

    def factory(parameters):
        seen.append(len(parameters))
        return torch.optim.SGD(parameters, lr=0.1)

    start(new(optimizer=functools.partial(factory)), batch_size=2)
    assert seen == [4]
