"""Asyrp's calibration and training: its invariants, and easy wrong versions that break them."""

from __future__ import annotations

import math

import pytest
import torch

from editkit.engine.asymmetric import Asymmetric
from editkit.engine.count import count_calls
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.asyrp.process import Attribute, Tables, shift_of
from tests.methods.asyrp_parts import Images, TinyClip, ready, tiny_backbone, tiny_method

CELEBA = {
    "predicted": [[400, 0.185], [421, 0.198], [450, 0.223], [459, 0.231], [489, 0.264], [514, 0.297], [538, 0.33], [550, 0.351]],
    "noisy": [[125, 1.087], [150, 1.164], [167, 1.2], [175, 1.216]],
}


def test_published_tables_give_the_published_times():
    tables = Tables.read(CELEBA)
    assert [tables.t_edit(cosine) for cosine in (1.0, 0.9, 0.8, 0.7, 0.6)] == [538, 514, 489, 459, 421]
    assert tables.t_boost() == 167


def test_farther_texts_give_a_longer_edit():
    """An easy wrong version uses one t_edit for all texts."""
    tables = Tables.read(CELEBA)
    times = [tables.t_edit(cosine / 100) for cosine in range(60, 101)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_threshold_out_of_reach_says_which_key_to_lower():
    with pytest.raises(UserError, match=r"method\.boost_threshold"):
        Tables.read(CELEBA).t_boost(5.0)


def test_calibration_measures_writes_and_is_read_back(tmp_path):
    method = tiny_method(run_dir=str(tmp_path), edit_threshold=0.0, boost_threshold=0.0)
    figures = method.tasks["calibrate"](Images())
    tables = Tables.read(figures["file"])
    assert [t for t, _ in tables.predicted] == [0, 199, 399, 599, 799, 999] == [t for t, _ in tables.noisy]
    assert tables.noisy[0][1] == 0 < tables.noisy[-1][1]
    assert figures["t_boost"] == 0
    again = tiny_method(tables=figures["file"], t_edit=None, t_boost=None, edit_threshold=0.0, boost_threshold=0.0)
    again.prepare_training()
    assert again.phases.t_boost == 0
    other = tiny_method(backbone=tiny_backbone(seed=9), tables=figures["file"], t_edit=None)
    with pytest.raises(UserError, match="another backbone"):
        other.prepare_training()


def test_distances_belong_to_their_own_time(tmp_path):
    """The released table keeps each estimate under the next time: off by one level."""
    backbone, data = tiny_backbone(), Images(2)
    method = tiny_method(backbone=backbone, run_dir=str(tmp_path))
    net = method.make_perceptual()
    method.make_perceptual = lambda: net
    tables = Tables.read(method.tasks["calibrate"](data)["file"])
    with torch.no_grad():
        first = net.distance(backbone(data.images, 0.0).x0, data.images).mean()
    assert tables.predicted[0][1] == pytest.approx(float(first), abs=1e-6)


# Training.


def test_one_step_per_level_and_only_the_block_moves():
    method, data = tiny_method(), Images()
    before, block = method.backbone.digest(), [p.clone() for p in method.delta.parameters()]
    ready(method)
    method.precompute(data)
    for rows in ([0, 1], [2, 3]):
        method.stepper.run(data.batch(rows))
    assert method.stepper.steps == 2 * len(method.edited) == 6
    assert method.backbone.digest() == before
    assert all(p.grad is None for p in method.backbone.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(block, method.delta.parameters(), strict=True))


def test_no_gradient_crosses_levels():
    method, data = ready(tiny_method()), Images()
    for update in method.updates(data.batch([0, 1])):
        graph_calls = [name for name in _nodes(update.total()) if "Convolution" in name]
        # the shifted decoder and the block's own two, once: not those of earlier levels
        limit = sum(isinstance(m, torch.nn.Conv2d) for m in method.backbone.unet.modules()) + 2
        assert 0 < len(graph_calls) <= limit


def _nodes(tensor):
    seen, stack = [], [tensor.grad_fn]
    known = set()
    while stack:
        node = stack.pop()
        if node is None or node in known:
            continue
        known.add(node)
        seen.append(type(node).__name__)
        stack += [parent for parent, _ in node.next_functions]
    return seen


@pytest.mark.parametrize("clip_source", ["x0", "p_src"])
def test_a_zero_initialised_block_starts_at_the_frozen_estimates(clip_source):
    method, data = ready(tiny_method(zero_init=True, clip_source=clip_source)), Images()
    first = next(iter(method.updates(data.batch([0, 1]))))
    assert torch.allclose(first.losses["l1"], torch.zeros(2), atol=1e-5)
    if clip_source == "p_src":
        assert torch.allclose(first.losses["clip"], torch.full((2,), 0.8 * math.log(2)), atol=1e-2)
    first.total().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.delta.parameters())
    assert any(p.grad.abs().max() > 0 for p in method.delta.parameters())


def test_training_lowers_the_clip_loss():
    method, data = ready(tiny_method(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))), Images()
    method.precompute(data)
    history = []
    for _ in range(8):
        history.append([update.losses["clip"].detach().mean().item() for update in _stepped(method, data)])
    assert sum(history[-1]) < sum(history[0])


def _stepped(method, data):
    for update in method.updates(data.batch([0, 1])):
        method.stepper._apply(update, data.batch([0, 1]))
        yield update


def test_the_l1_term_is_scaled_by_the_texts_cosine():
    method, data = ready(tiny_method(l1_weight=3.0)), Images()
    edited, source = data.images[:2] + 0.1, data.images[:2]
    losses, _ = method.losses(edited, source, method.direction.features(source))
    assert 0 < method.text_cosine < 1
    assert torch.allclose(losses["l1"], torch.full((2,), 3.0 * method.text_cosine * 0.1), atol=1e-5)


def test_training_walks_the_same_way_as_editing():
    """The state that training reaches is the one that the editor's loop reaches with the same block."""
    method, data = ready(tiny_method()), Images(2)
    levels, x = method.levels, method.compute_sources(data.images).x
    block = method.delta.requires_grad_(False)
    one = Attribute("own", lambda h, temb, t: block(h, temb), method.phases, method.n_train)
    with torch.no_grad():
        pred = method.predict(x, levels.times[method.edited[0]])
        wrapped = Asymmetric(method.backbone, shift_of(method.backbone, [one], torch.ones(2, 1)))
        expected = wrapped(x, levels.times[method.edited[0]])
    assert torch.allclose(pred.x0, expected.x0, atol=1e-4)
    assert torch.allclose(pred.eps, expected.eps, atol=1e-5)


def test_frozen_trajectories_and_source_features_are_computed_once():
    clip, data = TinyClip(), Images(4)
    method = ready(tiny_method(clip=clip))
    with count_calls(method.backbone, flops=False) as counter:
        method.precompute(data)
    # per image: 5 calls of the inversion, 3 of the frozen way down from time 999 to t_edit
    assert counter.evaluations == 4 * (5 + 3)
    assert clip.seen == 4
    with count_calls(method.backbone, flops=False) as counter:
        for rows in ([0, 1], [2, 3], [1, 0], [3, 2]):
            method.stepper.run(data.batch(rows))
    assert (counter.encoder, counter.decoder) == (8 * 3, 8 * 3 * 2)
    assert clip.seen == 4 + 8 * 3  # the edited estimates alone


def test_images_that_are_seen_once_are_not_kept():
    method = ready(tiny_method(), steps=None, images=4)
    method.precompute(Images(4))
    assert not method.kept
    method.stepper.run(Images(4).batch([0, 1]))
    assert method.stepper.steps == 3


def test_kept_sources_are_those_of_the_batch():
    method, data = ready(tiny_method()), Images(4)
    fresh = method.sources(data.batch([2, 0]))
    method.precompute(data)
    kept = method.sources(data.batch([2, 0]))
    for name in ("x", "x0", "features"):
        assert torch.allclose(getattr(fresh, name), getattr(kept, name), atol=1e-4), name


def test_a_run_needs_times_or_tables_and_a_level_between_them():
    with pytest.raises(UserError, match=r"method\.tables"):
        tiny_method(t_edit=None).prepare_training()
    with pytest.raises(UserError, match="lower method.t_edit"):
        tiny_method(t_edit=600, t_start=590).prepare_training()
    with pytest.raises(UsageError, match="clip_source=p_scr"):
        tiny_method(clip_source="p_scr")


def test_a_sample_grid_shows_source_half_and_full():
    method, data = ready(tiny_method()), Images(4)
    method.precompute(data)
    grid = method.sample_grid()
    assert grid.shape == (4, 3, 3, 8, 8)
    assert torch.equal(grid[:, 0], data.images)
