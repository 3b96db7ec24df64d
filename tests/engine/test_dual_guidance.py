"""Guidance by an image and an instruction, and rescaling as diffusers has it."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from editkit.engine.dual_guidance import DualClassifierFree
from editkit.engine.guidance import ClassifierFree, Clip, predict, with_v
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from editkit.types import Condition, Prediction
from tests.engine.stand_ins import SHAPE, Calls, Wavy, random

T = 400.0
ZERO_SNR = Schedule.scaled_linear().zero_terminal_snr()


@pytest.fixture
def lanes(wavy, x0):
    """The conditions (T,I), (0,I), (0,0), and what the network says under each alone."""
    conditions = [Condition(vector=random((3, 48), 4 + n)) for n in range(3)]
    return conditions, [wavy(x0, T, condition) for condition in conditions]


def guided(denoiser, x, conditions, **more):
    return predict(denoiser, x, more.pop("t", T), conditions[0], DualClassifierFree(conditions[1], conditions[2], **more))


def near(one, other):
    torch.testing.assert_close(one.eps, other.eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.x0, other.x0, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- lanes


def test_three_lanes_in_one_call(wavy, x0, lanes):
    conditions, (both, image, none) = lanes
    counted = Calls(wavy)
    pred = guided(counted, x0, conditions)
    assert counted.batches == [9] and counted.times == [T]
    eps = none.eps + 1.5 * (image.eps - none.eps) + 7.5 * (both.eps - image.eps)
    torch.testing.assert_close(pred.eps, eps, rtol=1e-9, atol=1e-9)
    a, s = wavy.schedule.coefficients(T, x0)
    torch.testing.assert_close(a * pred.x0 + s * pred.eps, x0, rtol=1e-9, atol=1e-9)


def test_the_order_of_the_branches_matters(wavy, x0, lanes):
    """Easy wrong versions: lanes swapped, and the other factorisation, text before image."""
    conditions, (both, image, none) = lanes
    right = guided(wavy, x0, conditions).eps
    swapped = guided(wavy, x0, [conditions[0], conditions[2], conditions[1]]).eps
    other = none.eps + 7.5 * (image.eps - none.eps) + 1.5 * (both.eps - image.eps)
    for wrong in (swapped, other):
        assert (right - wrong).abs().max() > 0.1


@pytest.mark.parametrize(
    ("text", "image", "asked"),
    [(1, 1, [0]), (0, 0, [2]), (0, 1, [1]), (7.5, 1, [0, 1]), (0, 1.5, [1, 2]), (4.0, 4.0, [0, 2]), (2, 0, [0, 1, 2])],
)
def test_lanes_of_weight_zero_are_not_queried(wavy, x0, lanes, text, image, asked):
    conditions, preds = lanes
    counted = Calls(wavy)
    pred = guided(counted, x0, conditions, text_scale=text, image_scale=image)
    assert counted.batches == [3 * len(asked)]
    guidance = DualClassifierFree(*conditions[1:], text_scale=text, image_scale=image)
    assert list(map(id, guidance.branches(conditions[0], T))) == [id(conditions[n]) for n in asked]
    both, alone, none = preds
    whole = none.eps + image * (alone.eps - none.eps) + text * (both.eps - alone.eps)
    torch.testing.assert_close(pred.eps, whole, rtol=1e-9, atol=1e-9)
    if len(asked) == 1:
        assert torch.equal(pred.eps, preds[asked[0]].eps) and torch.equal(pred.x0, preds[asked[0]].x0)


def test_equal_scales_are_plain_guidance(wavy, x0, lanes):
    conditions, _ = lanes
    plain = predict(wavy, x0, T, conditions[0], ClassifierFree(5.0, conditions[2]))
    near(guided(wavy, x0, conditions, text_scale=5.0, image_scale=5.0), plain)


def test_an_unused_image_lane_is_plain_guidance_by_text(wavy, x0, lanes):
    conditions, _ = lanes
    same = [conditions[0], conditions[2], conditions[2]]
    near(guided(wavy, x0, same, text_scale=7.5, image_scale=1.5), predict(wavy, x0, T, same[0], ClassifierFree(7.5, same[2])))


def test_guidance_of_x0_is_guidance_of_eps(wavy, x0, lanes):
    conditions, (both, image, none) = lanes
    x0_hat = none.x0 + 1.5 * (image.x0 - none.x0) + 7.5 * (both.x0 - image.x0)
    torch.testing.assert_close(guided(wavy, x0, conditions).x0, x0_hat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("t", "batch"), [(299.0, 3), (300.0, 9), (500.0, 9), (501.0, 3)])
def test_outside_its_interval_the_condition_is_alone(wavy, x0, lanes, t, batch):
    conditions, _ = lanes
    counted = Calls(wavy)
    pred = guided(counted, x0, conditions, t=t, interval=(300, 500))
    assert counted.batches == [batch]
    assert torch.equal(pred.eps, wavy(x0, t, conditions[0]).eps) == (batch == 3)


def test_a_batch_equals_its_samples_and_nesting_works(wavy, x0, lanes):
    conditions, _ = lanes
    together = guided(wavy, x0, conditions, rescale=0.7)
    for n in range(3):
        rows = [Condition(vector=each.vector[n : n + 1]) for each in conditions]
        near(guided(wavy, x0[n : n + 1], rows, rescale=0.7), Prediction(together.x0[n : n + 1], together.eps[n : n + 1]))
    clip = Clip(inner=DualClassifierFree(*conditions[1:]))
    assert predict(wavy, x0, T, conditions[0], clip).x0.abs().max() <= 1


# ------------------------------------------------------------------------------------------------------------ rescale


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(x0, lanes, wavy, share):
    conditions, (both, _, none) = lanes
    theirs = rescale_noise_cfg(none.eps + 7.5 * (both.eps - none.eps), both.eps, share)
    ours = predict(wavy, x0, T, conditions[0], ClassifierFree(7.5, conditions[2], rescale=share))
    torch.testing.assert_close(ours.eps, theirs, rtol=1e-9, atol=1e-9)
    dual = none.eps + 1.5 * (lanes[1][1].eps - none.eps) + 7.5 * (both.eps - lanes[1][1].eps)
    ours = guided(wavy, x0, conditions, rescale=share)
    torch.testing.assert_close(ours.eps, rescale_noise_cfg(dual, both.eps, share), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.0, 400.0, 999.0])
def test_rescaling_of_v_is_that_of_diffusers(x0, lanes, t):
    """There the network's output is rescaled, which is v for a v-model; where there is no signal as well."""
    conditions, _ = lanes
    wavy = Wavy(ZERO_SNR, "v")
    a, s = ZERO_SNR.coefficients(t, x0)
    both, none = (a * pred.eps - s * pred.x0 for pred in (wavy(x0, t, conditions[0]), wavy(x0, t, conditions[2])))
    theirs = rescale_noise_cfg(none + 7.5 * (both - none), both, 0.7)
    ours = predict(wavy, x0, t, conditions[0], ClassifierFree(7.5, conditions[2], rescale=0.7, rescale_of="v"))
    near(ours, ZERO_SNR.convert(x0, t, theirs, "v"))


def test_without_signal_rescaling_of_eps_does_nothing(x0, lanes):
    conditions, _ = lanes
    wavy = Wavy(ZERO_SNR, "v")
    plain, of_eps, of_v = (
        predict(wavy, x0, 999.0, conditions[0], ClassifierFree(7.5, conditions[2], **more)).x0
        for more in ({}, {"rescale": 0.7}, {"rescale": 0.7, "rescale_of": "v"})
    )
    torch.testing.assert_close(of_eps, plain)
    assert of_v.std() < 0.9 * plain.std()


def test_rescaling_over_the_whole_batch_is_another_thing(wavy, lanes):
    """Easy wrong version: one std for all samples, so that an image depends on its neighbours."""
    conditions, _ = lanes
    mixed = random((3, *SHAPE), 3) * torch.tensor([0.1, 1.0, 5.0]).reshape(-1, 1, 1, 1)
    both, none = (wavy(mixed, T, conditions[n]).eps for n in (0, 2))
    eps = none + 7.5 * (both - none)
    whole_batch = eps * both.std() / eps.std()
    ours = predict(wavy, mixed, T, conditions[0], ClassifierFree(7.5, conditions[2], rescale=1.0)).eps
    assert (ours - whole_batch).abs().max() > 0.05
    torch.testing.assert_close(ours, rescale_noise_cfg(eps, both, 1.0))


def test_moving_v_keeps_the_state():
    a, s, pred = 0.6, 0.8, Prediction(random((2, *SHAPE), 2), random((2, *SHAPE), 3))
    moved = with_v(pred, random((2, *SHAPE), 4), a, s)
    torch.testing.assert_close(a * moved.x0 + s * moved.eps, a * pred.x0 + s * pred.eps)
    torch.testing.assert_close(a * moved.eps - s * moved.x0, random((2, *SHAPE), 4))


def test_an_unknown_output_to_rescale_is_refused(lanes):
    conditions, _ = lanes
    for build in (lambda: ClassifierFree(7.5, rescale_of="x0"), lambda: DualClassifierFree(*conditions[1:], rescale_of="x0")):
        with pytest.raises(UsageError, match="choose from eps, v"):
            build()


# ---------------------------------------------------------------------------------------------------- negative prompts


def test_a_negative_condition_is_the_other_branch(wavy, x0, lanes):
    """Away from the negative by as much as towards the condition; swapping the two mirrors the scale at 1/2."""
    conditions, _ = lanes
    levels = wavy.schedule.levels(5)
    out = sample(wavy, x0, levels, conditions[0], guidance=ClassifierFree(3.0, conditions[2]))
    mirrored = sample(wavy, x0, levels, conditions[2], guidance=ClassifierFree(-2.0, conditions[0]))
    torch.testing.assert_close(out, mirrored, rtol=1e-9, atol=1e-9)
    assert (out - sample(wavy, x0, levels, conditions[0], guidance=ClassifierFree(3.0, conditions[1]))).abs().max() > 1e-2
