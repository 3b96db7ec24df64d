"""Asyrp's files, editor and tasks."""

from __future__ import annotations

import json

import pytest
import torch

from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.asyrp.process import Attribute
from editkit.training.artefact import Artefact
from editkit.types import EditRequest
from tests.methods.asyrp_parts import Images, attribute, editor_of, ready, reconstruction, tiny_backbone, tiny_method


@pytest.fixture(scope="module")
def images():
    return Images(3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = Images(4)
    method = ready(tiny_method(run_dir=str(folder)))
    method.stepper.run(data.batch([0, 1]))
    (path,) = method.export(folder / "export")
    return method, path, folder, data


def test_a_saved_file_edits_like_the_trained_block(exported):
    method, path, _, data = exported
    assert path.name == "a-smiling-face.safetensors"
    block = method.delta
    own = Attribute("own", lambda h, temb, t: block(h, temb), method.phases, 6, method.text_cosine)
    expected = editor_of(method.backbone, own).edit(data.requests()).images
    fresh = tiny_method(backbone=tiny_backbone())
    again = fresh.editor([Artefact.load(path)]).edit(data.requests()).images
    assert torch.equal(expected, again)


def test_the_card_says_what_the_file_needs(exported):
    _, path, _, _ = exported
    card = Artefact.load(path).card
    assert card["prompt"] == "a smiling face"
    assert (card["t_edit"], card["t_boost"], card["n_train"], card["bottleneck_shape"]) == (400, 0, 6, [16, 4, 4])
    json.dumps(card, allow_nan=False)


def test_the_strength_of_a_file_multiplies_that_of_the_request(exported):
    method, path, _, data = exported
    half = method.editor([Artefact.load(path, strength=0.5)]).edit(data.requests(strength=2.0)).images
    assert torch.allclose(half, method.editor([Artefact.load(path)]).edit(data.requests()).images, atol=1e-5)


def test_scores_count_calls_and_measure_the_reconstruction(exported):
    method, path, _, data = exported
    result = method.editor([Artefact.load(path)]).edit(data.requests())
    assert result.scores["network_calls"] == [11.0] * 4  # 5 up, 6 down
    assert result.scores["decoder_passes"] == [14.0] * 4  # 3 levels with two
    assert len(result.scores["reconstruction_psnr"]) == 4
    assert all(-20 < value <= 60 for value in result.scores["reconstruction_psnr"])


def test_requests_may_ask_for_their_own_number_of_steps(exported):
    method, path, _, data = exported
    editor = method.editor([Artefact.load(path)])
    requests = data.requests()
    mixed = editor.edit([requests[0], requests[1].with_(steps=4), requests[2]])
    assert mixed.scores["network_calls"] == [11.0, 7.0, 11.0]
    assert torch.allclose(mixed.images[1], editor.edit([requests[1].with_(steps=4)]).images[0], atol=1e-4)
    assert torch.allclose(mixed.images[2], editor.edit([requests[2]]).images[0], atol=1e-4)


def test_inversions_come_from_the_cache_and_serve_other_attributes(backbone, images, tmp_path):
    cache = InversionCache(tmp_path)
    first = editor_of(backbone, attribute(backbone, 0), cache=cache).prepare(images.requests())
    with count_calls(backbone, flops=False) as counter:
        other = editor_of(backbone, attribute(backbone, 1), cache=cache)
        again = other.prepare(images.requests())
        assert counter.evaluations == 0
    assert torch.equal(first.x, again.x)
    assert torch.equal(other.edit(images.requests(), first).images, other.edit(images.requests()).images)


def test_a_file_of_something_else_is_refused(exported):
    method, path, _, _ = exported
    with pytest.raises(UserError, match="not of asyrp"):
        method.editor([Artefact("odd", {}, card={"method": "other"})])
    wider = tiny_method(backbone=tiny_backbone(block_out_channels=(8, 32)))
    with pytest.raises(UserError, match="another backbone"):
        wider.editor([Artefact.load(path)])


def test_mean_and_global_shifts_are_files_that_edit(exported):
    """The released code ignores them: here they must move the image, much as the block itself does."""
    method, path, folder, data = exported
    figures = method.tasks["mean_delta"](data)
    files = [Artefact.load(name) for name in figures["files"].split(", ")]
    kinds = {artefact.card["kind"]: artefact for artefact in files}
    assert kinds["mean"].tensors["values"].shape == (3, 16, 4, 4)
    assert kinds["global"].tensors["values"].shape == (1, 16, 4, 4)
    plain = reconstruction(method.backbone, data)
    full = method.editor([Artefact.load(path)]).edit(data.requests()).images
    for artefact in files:
        edited = method.editor([artefact]).edit(data.requests()).images
        assert (edited - plain).abs().max() > 1e-4
        assert (edited - full).norm() < (plain - full).norm()
    for file in figures["files"].split(", "):
        (folder / "export" / file.rsplit("/", 1)[1]).unlink()


def test_strips_and_grids_are_written(exported, tmp_path):
    _, path, _, data = exported
    one = tiny_method(attributes=[str(path)], run_dir=str(tmp_path))
    figures = one.tasks["strip"](data)
    assert figures["strengths"] == [-1.0, 0.0, 1.0]
    assert (tmp_path / "strip.png").stat().st_size > 0
    with pytest.raises(UserError, match="two trained files"):
        one.tasks["grid"](data)
    two = tiny_method(attributes=[str(path), str(path)], run_dir=str(tmp_path))
    assert len(two.tasks["grid"](data)["files"].split(", ")) == 2


def test_tasks_without_files_say_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"method\.attributes"):
        tiny_method(run_dir=str(tmp_path)).tasks["strip"](Images())


def test_an_adm_style_backbone_gets_its_own_block(images):
    backbone = tiny_backbone(resnet_time_scale_shift="scale_shift", out_channels=6)
    method = ready(tiny_method(backbone=backbone))
    assert type(method.delta).__name__ == "AdmDelta"
    method.stepper.run(images.batch([0, 1]))
    assert method.card()["style"] == "adm"
    assert method.editor(method.artefacts()).edit(images.requests()).images.shape == (3, 3, 8, 8)


def test_needs_an_image(backbone):
    with pytest.raises(UsageError, match="asyrp needs --image"):
        editor_of(backbone, attribute(backbone)).check([EditRequest(key="a")])
