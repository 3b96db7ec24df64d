"""Schedules, conversions and lists of levels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from tests.engine.stand_ins import SHAPE, random

SCHEDULES = {
    "linear": (Schedule.linear, {"beta_schedule": "linear"}),
    "scaled_linear": (
        Schedule.scaled_linear,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (Schedule.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_those_of_diffusers(name):
    build, config = SCHEDULES[name]
    theirs = DDIMScheduler(**config).alphas_cumprod.double()
    torch.testing.assert_close(build().table, theirs, rtol=2e-5, atol=1e-9)


def test_zero_terminal_snr_is_that_of_diffusers():
    theirs = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)
    ours = Schedule.scaled_linear().zero_terminal_snr()
    assert ours.table[-1] == 0
    torch.testing.assert_close(ours.table, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-7)


def test_alpha_bar_is_exact_at_whole_times_and_falls_between():
    schedule = Schedule.linear()
    assert schedule.alpha_bar(-1) == 1.0
    assert torch.equal(schedule.alpha_bar(torch.arange(1000)), schedule.table)
    fine = schedule.alpha_bar(torch.linspace(-1, 999, 5001))
    assert fine.dtype == torch.float64 and (fine.diff() < 0).all() and fine[-1] == schedule.table[-1]
    assert schedule.alpha_bar(torch.zeros(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="outside"):
        schedule.alpha_bar(1000)


@pytest.mark.parametrize("t", [0, 17.5, 999, torch.tensor([3.0, 500.0, 999.0])])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_conversions_agree(kind, t):
    schedule = Schedule.linear()
    x0, eps = random((3, *SHAPE), 1), random((3, *SHAPE), 2)
    a, s = schedule.coefficients(t, x0)
    output = {"eps": eps, "x0": x0, "v": a * eps - s * x0}[kind]
    pred = schedule.convert(schedule.add_noise(x0, t, eps), t, output, kind)
    torch.testing.assert_close(pred.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pred.eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("t", [3.0, torch.tensor([0, 500, 998])], ids=["one time", "a time each"])
def test_an_output_is_what_its_prediction_says(kind, t):
    schedule = Schedule.scaled_linear()
    x, output = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    again = schedule.output(schedule.convert(x, t, output, kind), t, kind)
    torch.testing.assert_close(again, output)
    with pytest.raises(ValueError, match="choose from eps, v, x0"):
        schedule.output(schedule.convert(x, t, output, kind), t, "u")


def test_a_time_for_the_batch_and_a_time_per_sample_give_the_same_bits():
    schedule = Schedule.linear()
    x, output = random((3, *SHAPE), 1, torch.float32), random((3, *SHAPE), 2, torch.float32)
    for kind in ("eps", "v", "x0"):
        one = schedule.convert(x, 321, output, kind)
        each = schedule.convert(x, torch.full((3,), 321), output, kind)
        torch.testing.assert_close(one.x0, each.x0, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(one.eps, each.eps, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("t", [-1, 999])
@pytest.mark.parametrize("per_sample", [False, True])
def test_conversions_and_their_gradients_are_finite_at_both_ends(kind, t, per_sample):
    schedule = Schedule.linear().zero_terminal_snr()
    x, output = random((2, *SHAPE), 1).requires_grad_(), random((2, *SHAPE), 2).requires_grad_()
    pred = schedule.convert(x, torch.full((2,), t) if per_sample else t, output, kind)
    grads = torch.autograd.grad((pred.x0 + pred.eps).sum(), (x, output), materialize_grads=True)
    assert all(tensor.isfinite().all() for tensor in (pred.x0, pred.eps, *grads))
    if kind == "v":  # complete at both ends: clean x is x0; pure noise is eps
        torch.testing.assert_close(pred.x0 if t == -1 else pred.eps, x)


def test_half_precision_outputs_are_converted_in_the_precision_of_the_state():
    x, output = random((2, *SHAPE), 1, torch.float32), random((2, *SHAPE), 2, torch.float32).bfloat16()
    pred = Schedule.linear().convert(x, 500, output, "eps")
    assert pred.x0.dtype == pred.eps.dtype == torch.float32


def test_add_noise_is_that_of_diffusers():
    x0, noise = random((3, *SHAPE), 1, torch.float32), random((3, *SHAPE), 2, torch.float32)
    t = torch.tensor([0, 500, 999])
    torch.testing.assert_close(
        Schedule.linear().add_noise(x0, t, noise), DDIMScheduler().add_noise(x0, noise, t), rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------------------------------------------------ levels


def test_the_official_grid():
    schedule = Schedule.linear()
    levels = schedule.levels(40, start=999)
    assert levels.entry == 1 and len(levels) == 41
    assert levels.alpha_bar[0] == 1 and levels.times[0] == -1
    assert list(levels.times[1:]) == [int(999 * k / 39 + 1e-6) for k in range(40)]
    assert levels.alpha_bar[1:] == tuple(schedule.table[[int(t) for t in levels.times[1:]]].tolist())
    assert schedule.levels(6, start=500).times == (-1, 0, 100, 200, 300, 400, 500)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [10, 50, 7])
def test_other_spacings_are_those_of_diffusers(spacing, n):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(n)
    levels = Schedule.linear().levels(n, spacing=spacing, offset=1)
    assert list(levels.times[:0:-1]) == scheduler.timesteps.tolist()
    assert levels.entry == 0


def test_a_start_cuts_every_spacing():
    for spacing in ("official", "leading", "trailing", "linspace"):
        times = Schedule.linear().levels(10, start=499, spacing=spacing).times
        assert max(times) <= 499 and max(times) >= 440 and len(times) == 11


def test_the_no_op_last_step_is_left_out():
    levels = Schedule.scaled_linear().levels(50, spacing="leading", clean="ab0")
    assert levels.times[:3] == (0, 20, 40) and len(levels) == 50 and levels.entry == 0
    with_offset = Schedule.scaled_linear().levels(50, spacing="leading", offset=1, clean="ab0")
    assert with_offset.times[:3] == (-1, 1, 21) and with_offset.alpha_bar[0] == float(Schedule.scaled_linear().table[0])


def test_digest_tells_levels_apart():
    schedule = Schedule.linear()
    same = schedule.levels(20).digest()
    assert same == Schedule.linear().levels(20).digest()
    others = [
        schedule.levels(21),
        schedule.levels(20, start=998),
        schedule.levels(20, spacing="linspace"),
        Schedule.cosine().levels(20),
    ]
    assert same not in {levels.digest() for levels in others}


def test_digest_is_the_same_on_every_machine():
    """Last bits of alpha_bar depend on the processor; a trajectory goes from one machine to another."""
    ours = Schedule.linear().levels(20)
    theirs = replace(ours, alpha_bar=tuple(value * (1 + 1e-15) for value in ours.alpha_bar))
    assert theirs != ours and theirs.digest() == ours.digest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 10, "spacing": "leadin"}, "Did you mean 'leading'"),
        ({"n": 200, "start": 100}, "use 2 to 101"),
        ({"n": 1}, "use 2 to"),
        ({"n": 10, "start": 1000}, "choose from 1 to 999"),
        ({"n": 10, "clean": "zero"}, "choose from one, ab0"),
        ({"n": 1000, "spacing": "leading", "offset": 1}, "beyond the last one"),
    ],
)
def test_wrong_levels_say_what_to_type(arguments, message):
    with pytest.raises(UsageError, match=message):
        Schedule.linear().levels(**arguments)


def test_the_stride_shortcut_is_wrong_on_other_grids():
    """Easy wrong version: the next time as t - T // N. On the linspace grid it is another level."""
    times = Schedule.linear().levels(50, spacing="linspace").times
    wrong = [t - 1000 // 50 for t in times[2:]]
    assert np.abs(np.array(wrong) - np.array(times[1:-1])).max() >= 1
    exact = Schedule.linear().levels(50, spacing="leading").times
    assert [t - 1000 // 50 for t in exact[2:]] == list(exact[1:-1])


def test_wrong_tables_are_refused():
    for table in ([0.5, 0.9], [1.1, 0.5], [[0.9, 0.5]], [0.9]):
        with pytest.raises(ValueError):
            Schedule(torch.tensor(table))
    assert math.isclose(float(Schedule(torch.tensor([0.9, 0.5])).alpha_bar(0.5)), 0.7, abs_tol=1e-7)
