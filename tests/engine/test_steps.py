"""Solver steps: what has to hold whatever the network says."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from editkit.engine.multistep import dpmpp_2m
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddim, ddpm, move, sigma
from editkit.types import Prediction
from tests.engine.stand_ins import SHAPE, random

LEVELS = Schedule.linear().levels(50, spacing="leading")
STEPS = {"ddim": ddim, "ddim eta": partial(ddim, eta=1.0), "ddpm": ddpm, "2m": dpmpp_2m}


def consistent(x, i, eps, levels=LEVELS):
    return Prediction((x - levels.noise(i) * eps) / levels.signal(i), eps)


@pytest.mark.parametrize(("i", "j"), [(3, 40), (0, 50), (12, 13)])
def test_a_move_and_its_way_back_are_the_identity(i, j):
    x, eps = random((2, *SHAPE), 1), random((2, *SHAPE), 2)
    back = move(LEVELS, j, i, move(LEVELS, i, j, x, eps), eps)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)


def test_moves_with_the_stride_shortcut_do_not_come_back():
    """Easy wrong version: landing at time t - T // N of a linspace grid, then going up from the listed level."""
    schedule = Schedule.linear()
    levels = schedule.levels(50, spacing="linspace")
    i = next(i for i in range(30, 50) if levels.times[i] - levels.times[i - 1] != 1000 // 50)
    wrong = schedule.levels_at([levels.times[i] - 1000 // 50, levels.times[i]])
    x, eps = random((2, *SHAPE), 1), random((2, *SHAPE), 2)
    landed = ddim(wrong, 2, 1, x, consistent(x, i, eps, levels), [], None)
    assert (move(levels, i - 1, i, landed, eps) - x).abs().max() > 1e-3


@pytest.mark.parametrize("name", STEPS)
def test_a_step_to_its_own_level_is_the_identity_bit_for_bit(name):
    x = random((2, *SHAPE), 1, torch.float32)
    pred = Prediction(random((2, *SHAPE), 2, torch.float32), random((2, *SHAPE), 3, torch.float32))
    assert torch.equal(STEPS[name](LEVELS, 20, 20, x, pred, [], random((2, *SHAPE), 4, torch.float32)), x)
    assert torch.equal(move(LEVELS, 20, 20, x, pred.eps), x)


@pytest.mark.parametrize(("i", "j"), [(50, 0), (50, 49), (10, 3), (3, 10), (1, 0)])
def test_the_true_noise_leads_from_any_level_to_any_other(i, j):
    x0, eps = random((2, *SHAPE), 1), random((2, *SHAPE), 2)
    x = LEVELS.signal(i) * x0 + LEVELS.noise(i) * eps
    landed = ddim(LEVELS, i, j, x, Prediction(x0, eps), [], None)
    torch.testing.assert_close(landed, LEVELS.signal(j) * x0 + LEVELS.noise(j) * eps, rtol=1e-12, atol=1e-12)


def test_first_order_dpm_solver_is_ddim():
    x, eps = random((2, *SHAPE), 1), random((2, *SHAPE), 2)
    i, j = 30, 29
    m = consistent(x, i, eps).x0
    h = 0.5 * math.log(LEVELS.alpha_bar[j] / (1 - LEVELS.alpha_bar[j])) - 0.5 * math.log(
        LEVELS.alpha_bar[i] / (1 - LEVELS.alpha_bar[i])
    )
    formula = LEVELS.noise(j) / LEVELS.noise(i) * x - LEVELS.signal(j) * math.expm1(-h) * m
    torch.testing.assert_close(dpmpp_2m(LEVELS, i, j, x, consistent(x, i, eps), [], None), formula, rtol=1e-12, atol=1e-12)


def test_second_order_only_in_the_middle():
    x, pred = random((2, *SHAPE), 1), Prediction(random((2, *SHAPE), 2), random((2, *SHAPE), 3))
    earlier = Prediction(random((2, *SHAPE), 4), random((2, *SHAPE), 5))

    def second_order(levels, i, history):
        return not torch.equal(dpmpp_2m(levels, i, i - 1, x, pred, history, None), ddim(levels, i, i - 1, x, pred, [], None))

    assert not second_order(LEVELS, 50, [])
    assert second_order(LEVELS, 49, [(50, earlier)])
    assert not second_order(LEVELS, 1, [(2, earlier)])
    short = Schedule.linear().levels(10, spacing="leading", offset=1, clean="ab0")
    long = Schedule.linear().levels(20, spacing="leading", offset=1, clean="ab0")
    assert not second_order(short, 1, [(2, earlier)])
    assert second_order(long, 1, [(2, earlier)])


def test_steps_from_pure_noise_are_finite():
    levels = Schedule.scaled_linear().zero_terminal_snr().levels(20, spacing="trailing")
    assert levels.alpha_bar[-1] == 0
    x, pred = random((2, *SHAPE), 1), Prediction(random((2, *SHAPE), 2), random((2, *SHAPE), 3))
    for step in STEPS.values():
        assert step(levels, 20, 19, x, pred, [], random((2, *SHAPE), 4)).isfinite().all()
        assert step(levels, 19, 18, x, pred, [(20, pred)], random((2, *SHAPE), 4)).isfinite().all()
    with pytest.raises(ValueError, match="alpha_bar 0"):
        move(levels, 20, 19, x, pred.eps)


def test_eta_one_is_ddpm_with_the_small_variance():
    x, noise = random((2, *SHAPE), 1), random((2, *SHAPE), 3)
    pred = consistent(x, 30, random((2, *SHAPE), 2))
    ancestral = ddpm(LEVELS, 30, 29, x, pred, [], noise)
    torch.testing.assert_close(ddim(LEVELS, 30, 29, x, pred, [], noise, eta=1.0), ancestral, rtol=1e-10, atol=1e-10)


def test_no_noise_at_the_clean_end():
    x = random((2, *SHAPE), 1)
    pred = consistent(x, 1, random((2, *SHAPE), 2))
    assert sigma(LEVELS, 1, 0, 1.0) == 0
    torch.testing.assert_close(ddim(LEVELS, 1, 0, x, pred, [], None, eta=1.0), pred.x0)
    torch.testing.assert_close(ddpm(LEVELS, 1, 0, x, pred, [], None), pred.x0)
    torch.testing.assert_close(ddpm(LEVELS, 1, 0, x, pred, [], None, variance="large"), pred.x0)


@pytest.mark.parametrize("step", [partial(ddim, eta=0.5), ddpm])
def test_noise_that_is_due_must_be_given_and_only_downwards(step):
    x = random((2, *SHAPE), 1)
    pred = consistent(x, 30, x)
    with pytest.raises(ValueError, match="noise="):
        step(LEVELS, 30, 29, x, pred, [], None)
    with pytest.raises(ValueError, match="up"):
        step(LEVELS, 30, 31, x, pred, [], x)


def test_learned_variances():
    x, noise = random((2, *SHAPE), 1), random((2, *SHAPE), 3)
    pred = consistent(x, 30, random((2, *SHAPE), 2))

    def with_share(value):
        return Prediction(pred.x0, pred.eps, features={"variance": torch.full_like(x, value)})

    small, large = (ddpm(LEVELS, 30, 29, x, pred, [], noise, variance=kind) for kind in ("small", "large"))
    torch.testing.assert_close(ddpm(LEVELS, 30, 29, x, with_share(-1.0), [], noise), small)
    torch.testing.assert_close(ddpm(LEVELS, 30, 29, x, with_share(1.0), [], noise), large)
    mean = ddpm(LEVELS, 30, 29, x, pred, [], torch.zeros_like(x))
    middle = ddpm(LEVELS, 30, 29, x, with_share(0.0), [], noise) - mean
    torch.testing.assert_close(middle**2, (small - mean).abs() * (large - mean).abs())  # the geometric mean
    absolute = Prediction(pred.x0, pred.eps, logvar=torch.full_like(x, math.log(0.25)))
    torch.testing.assert_close(ddpm(LEVELS, 30, 29, x, absolute, [], noise), mean + 0.5 * noise)


def test_the_mean_shift_comes_before_the_noise():
    x, noise, shift = (random((2, *SHAPE), n) for n in (1, 3, 4))
    pred = consistent(x, 30, random((2, *SHAPE), 2))
    shifted = Prediction(pred.x0, pred.eps, mean_shift=shift)
    for step in STEPS.values():
        difference = step(LEVELS, 30, 29, x, shifted, [], noise) - step(LEVELS, 30, 29, x, pred, [], noise)
        torch.testing.assert_close(difference, shift)


def test_x0_and_eps_are_taken_from_their_own_fields():
    """An edit d of eps that reaches x0 only moves x by -a_j s_i / a_i d; in both terms it nearly cancels."""
    levels = Schedule.linear().levels_at([499, 500])
    x, eps, d = random((1, *SHAPE), 1), random((1, *SHAPE), 2), torch.ones(1, *SHAPE, dtype=torch.float64)
    plain, edited = consistent(x, 2, eps, levels), consistent(x, 2, eps + d, levels)
    base = ddim(levels, 2, 1, x, plain, [], None)
    asymmetric = ddim(levels, 2, 1, x, Prediction(edited.x0, plain.eps), [], None) - base
    symmetric = ddim(levels, 2, 1, x, edited, [], None) - base
    torch.testing.assert_close(asymmetric, -levels.signal(1) / levels.signal(2) * levels.noise(2) * d)
    assert round(float(asymmetric.mean()), 4) == -0.9652 and round(float(symmetric.mean()), 4) == -0.0053
