"""What every method promises, whichever it is."""

from __future__ import annotations

import pytest
import torch

from editkit.errors import UsageError
from editkit.training import checkpoint
from editkit.training.editor import Editor, option
from tests.conformance.cases import RECIPES, Case, build, loaded, make, precision, snapshot, start, step
from tests.tiny import request as edit_request


@pytest.fixture(scope="module", params=RECIPES)
def case(request, assets, tmp_path_factory) -> Case:
    return make(request.param, assets, tmp_path_factory.mktemp("export"))


def test_losses_are_finite_and_only_the_trained_part_receives_gradients(case):
    stepper = case.needs_training()
    with precision(stepper):
        look_at_updates(case.method)


def look_at_updates(method):
    groups, batch = method.trained_parameters(), method.dummy_batch()
    count = len(next(iter(batch.values())))
    updates = 0
    for update in method.updates(batch):
        assert update.group in groups
        assert update.losses and all(torch.isfinite(loss).all() for loss in update.losses.values())
        assert all(loss.ndim == 0 or len(loss) == count for loss in update.losses.values())
        assert all(not value.requires_grad for value in update.report.values()), "what is only reported is detached"
        update.total().backward()
        received = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
        assert received <= {name for group in groups.values() for name in group}
        assert method.unused_parameters or set(groups[update.group]) <= received, "unused_parameters would allow that"
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
        method.zero_grad(set_to_none=True)
        updates += 1
    assert updates > 0


def test_two_batches_change_the_trained_part_and_nothing_else(case):
    stepper = case.needs_training()
    changed = {name for name in case.after if not torch.equal(case.before[name], case.after[name])}
    assert changed <= set(case.method.trained_state())
    for group, parameters in stepper.parameters.items():
        assert changed & set(parameters), f"the group {group!r} did not move"
    assert stepper.steps >= 2 and stepper.images >= 2 * stepper.plan.batch_size


def test_a_checkpoint_holds_all_that_training_needs(case, assets, tmp_path):
    stepper = case.needs_training()
    path = checkpoint.save(tmp_path, stepper.steps, case.method.trained_state(), {"stepper": stepper.state_dict()})
    step(case.method)
    other = start(case.name, assets)
    with torch.no_grad():
        for parameters in other.trained_parameters().values():
            for parameter in parameters.values():
                parameter.add_(1.0)
    loaded = checkpoint.load(path)
    other.load_trained(loaded.weights)
    other.stepper.load_state_dict(loaded.state["stepper"])
    step(other)
    assert (other.stepper.steps, other.stepper.images) == (stepper.steps, stepper.images)
    for name, tensor in case.method.trained_state().items():
        assert torch.equal(tensor, other.trained_state()[name]), name
    for group, averages in stepper.ema.averages.items():
        assert all(torch.equal(average, other.stepper.ema.averages[group][name]) for name, average in averages.items())


def test_export_is_repeatable_and_leaves_the_method_as_it_was(case, tmp_path):
    case.needs_training()
    before, modes = snapshot(case.method), {name: part.training for name, part in case.method.named_modules()}
    files = [case.method.export(tmp_path / folder) for folder in ("a", "b")]
    assert files[0] and len(files[0]) == len(files[1])
    for one, two in zip(*files, strict=True):
        assert one.relative_to(tmp_path / "a") == two.relative_to(tmp_path / "b")
        assert one.suffix == ".safetensors" and one.read_bytes() == two.read_bytes()
    after = snapshot(case.method)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert modes == {name: part.training for name, part in case.method.named_modules()}


def test_a_card_says_what_made_it(case):
    assert case.method.card()["method"] == f"{type(case.method).__module__}.{type(case.method).__qualname__}"
    assert all(artefact.card["steps"] >= 2 and artefact.card["method"] for artefact in case.artefacts)
    assert len({artefact.name for artefact in case.artefacts}) == len(case.artefacts)


def edited(editor: Editor, requests):
    torch.manual_seed(3)
    return editor.edit(requests, editor.prepare(requests)).images


def test_saved_and_loaded_it_edits_alike(case, assets, tmp_path):
    requests = [edit_request("a.png"), edit_request("bb.png")][: 1 if case.editor().per_image else 2]
    with case.method.averaged_weights():
        own = edited(case.method.eval().editor(case.method.artefacts()) if case.stepper else case.editor(), requests)
    case.method.train()
    assert own.shape == (len(requests), *requests[0].image.shape) and torch.isfinite(own).all()
    artefacts = loaded(case.method.export(tmp_path), tmp_path) if case.stepper else []
    assert torch.equal(own, edited(build(case.name, assets)[1].editor(artefacts), requests))


def test_an_edit_does_not_depend_on_its_batch(case):
    editor = case.editor()
    if editor.per_image:
        pytest.skip("one image at a time")
    requests = [edit_request("a.png"), edit_request("bb.png")]
    together = edited(editor, requests)
    alone = torch.cat([edited(editor, [one]) for one in requests])
    assert (together - alone).abs().max() <= 2 / 255


def test_missing_inputs_are_named(case):
    editor = case.editor()
    editor.check([edit_request()])
    assert editor.name != Editor.name, "an editor has a name for messages"
    for need in editor.needs:
        with pytest.raises(UsageError, match=f"^{editor.name} needs {option(need)}$"):
            editor.check([edit_request(), edit_request(**{need: None})])
