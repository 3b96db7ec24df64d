"""EffDiff's editing: its invariants, and easy wrong versions that break them."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.mixture import Mixture
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.effdiff.editor import grid
from editkit.training.artefact import Artefact
from tests.methods.asyrp_parts import Images, ready, tiny_backbone
from tests.methods.diffusionclip_parts import stirred
from tests.methods.effdiff_parts import T0, tiny_method


@pytest.fixture(scope="module")
def images():
    return Images(3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = Images(4)
    method = ready(tiny_method())
    for rows in ([0, 1], [2, 3]):
        method.stepper.run(data.batch(rows))
    (path,) = method.export(folder / "export")
    return method, path, data


def of_file(path, **changes):
    method = tiny_method(**changes)
    return method, method.editor([Artefact.load(path)])


def test_one_step_is_the_estimate_at_t0(images):
    backbone = tiny_backbone()
    tuned, requests = stirred(backbone), images.requests(steps=1)
    method = tiny_method(backbone=backbone, n_test=1)
    file = Artefact("x", tuned.state_dict(), card={"kind": "weights", "t0": T0})
    editor = method.editor([file])
    x = editor.prepare(requests)
    with torch.no_grad():
        estimate = tuned(x, float(T0)).x0
        # an easy wrong version takes linspace(0, 1, 1), whose only time is 0
        wrong = sample(tuned, x, backbone.schedule.levels_at([0], entry=1))
    edited = editor.edit(requests, x).images
    assert torch.allclose(edited, estimate, atol=1e-6)
    assert not torch.allclose(wrong, estimate, atol=1e-3)


def test_the_grid_goes_from_t0_to_0_and_lands_on_a_clean_image():
    schedule = Schedule.linear()
    assert grid(schedule, 6, T0).times == (-1.0, 0.0, 70.0, 140.0, 210.0, 280.0, 350.0)
    assert grid(schedule, 1, T0).times == (-1.0, float(T0)) and grid(schedule, 1, T0).alpha_bar[0] == 1.0


def test_with_a_rate_of_0_an_edit_is_the_plain_way_back(images):
    method = ready(tiny_method(optimizer=partial(torch.optim.SGD, lr=0.0)))
    method.stepper.run(images.batch([0, 1]))
    editor = method.editor(method.artefacts())
    x = editor.prepare(images.requests())
    with torch.no_grad():
        plain = sample(method.backbone, x, grid(method.backbone.schedule, 6, T0))
    assert torch.equal(editor.edit(images.requests(), x).images, plain)


def test_an_edit_takes_n_test_calls_of_the_tuned_network_and_none_of_the_original(exported):
    """An easy wrong version inverts and decodes in forty steps when it edits: 79 calls."""
    _, path, data = exported
    method, editor = of_file(path)
    with count_calls(method.backbone, flops=False) as original, count_calls(editor.tuned, flops=False) as own:
        result = editor.edit(data.requests())
    assert (original.calls, own.calls) == (0, 6)
    assert result.scores["network_calls"] == [6.0] * 4
    faithful = of_file(path, encoder="ddim")[1].edit(data.requests(steps=3))
    assert faithful.scores["network_calls"] == [7 + 3.0] * 4


def test_noise_belongs_to_the_image_and_its_seed(exported):
    _, path, data = exported
    _, editor = of_file(path)
    together = editor.edit(data.requests()).images
    alone = torch.cat([editor.edit([request]).images for request in data.requests()])
    assert torch.allclose(together, alone, atol=1e-4)
    for change in ({"seed": 1}, {"sample": 1}):
        assert not torch.allclose(together, editor.edit(data.requests(**change)).images, atol=1e-2)


def test_strength_leads_from_the_original_network_to_the_tuned_one(exported):
    _, path, data = exported
    method, editor = of_file(path)
    x = editor.prepare(data.requests())
    levels = grid(method.backbone.schedule, 6, T0)
    edits = {s: editor.edit(data.requests(strength=s), x) for s in (0.0, 0.5, 1.0)}
    with torch.no_grad():
        assert torch.equal(edits[0.0].images, sample(method.backbone, x, levels))
        assert torch.equal(edits[1.0].images, sample(editor.tuned, x, levels))
        half = sample(Mixture(method.backbone, [editor.tuned], lambda t: torch.full((4, 2), 0.5)), x, levels)
    assert torch.equal(edits[0.5].images, half)
    assert [edits[s].scores["network_calls"][0] for s in (0.0, 0.5, 1.0)] == [6, 12, 6]
    mixed = [request.with_(strength=s) for request, s in zip(data.requests(), (0.0, 0.5, 1.0, None), strict=True)]
    result = editor.edit(mixed, x)
    assert result.scores["network_calls"] == [6, 12, 6, 6]
    assert torch.allclose(result.images[1], half[1], atol=1e-4)
    weaker = method.editor([Artefact.load(path, strength=0.5)])
    assert torch.equal(weaker.edit(data.requests(), x).images, half)


def test_a_saved_file_edits_like_the_trained_network(exported):
    method, path, data = exported
    fresh, editor = of_file(path)
    x = editor.prepare(data.requests())
    with torch.no_grad():
        own = sample(method.network(), x, grid(method.backbone.schedule, 6, T0))
        plain = sample(method.backbone, x, grid(method.backbone.schedule, 6, T0))
    again = editor.edit(data.requests(), x).images
    assert torch.allclose(own, again, atol=5e-3) and fresh.tuned is None
    assert (own - plain).abs().max() > 20 * (own - again).abs().max()


def test_the_card_decides_t0_and_says_what_the_file_needs(exported):
    method, path, _ = exported
    card = Artefact.load(path).card
    assert (card["kind"], card["t0"], card["encoder"], card["prompt"]) == ("difference", T0, "q_sample", "a smiling face")
    assert card["backbone_digest"] == method.backbone.digest()
    json.dumps(card, allow_nan=False)
    assert of_file(path, t0=200)[1].encode.t0 == T0


def test_a_file_of_something_else_is_refused(exported):
    method, path, _ = exported
    with pytest.raises(UserError, match="not a fine-tuned network"):
        method.editor([Artefact("odd", {}, card={"method": "other"})])
    with pytest.raises(UserError, match="another backbone"):
        tiny_method(backbone=tiny_backbone(block_out_channels=(8, 32))).editor([Artefact.load(path)])
    with pytest.raises(UserError, match="another backbone"):
        tiny_method(backbone=tiny_backbone(seed=9)).editor([Artefact.load(path)])
    with pytest.raises(UsageError, match="one trained file, got 2"):
        method.editor([Artefact.load(path)] * 2)


def test_inversions_come_from_the_cache(exported, tmp_path):
    _, path, data = exported
    method, editor = of_file(path, encoder="ddim")
    editor.cache = InversionCache(tmp_path)
    first = editor.prepare(data.requests())
    with count_calls(method.backbone, flops=False) as counter:
        assert torch.equal(editor.prepare(data.requests()), first)
    assert counter.calls == 0


def test_a_sample_grid_shows_source_and_edit():
    method, data = ready(tiny_method()), Images(4)
    assert method.sample_grid() is None
    method.precompute(data)
    shown = method.sample_grid()
    assert shown.shape == (4, 2, 3, 8, 8) and torch.equal(shown[:, 0], data.images)
