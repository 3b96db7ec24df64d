"""The solvers by name: their orders, their starts, both ends of the schedule, and easy wrong versions of them."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from editkit.engine.invert import SDEdit, replay
from editkit.engine.multistep import dpmpp_2m, plms, unipc, warm_up
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.solvers import SOLVERS, solver_named
from editkit.engine.steps import ddim, move
from editkit.errors import UsageError
from editkit.types import Levels, Prediction
from tests.engine.stand_ins import SHAPE, Calls, Gaussian, Oracle, Wavy, random

DETERMINISTIC = ("ddim", "euler", "plms", "dpmpp-2m", "unipc")
ZERO_SNR = Schedule.scaled_linear().zero_terminal_snr()


def even(schedule, n, low=199, high=999):
    """Levels whose last move, 1 to 0, is not walked: times from low to high."""
    return schedule.levels_at([low + (high - low) * k / n for k in range(n + 1)])


def error(gaussian, n, x, **walk):
    levels = walk["levels"] if "levels" in walk else even(gaussian.schedule, n)
    exact = gaussian.flow(x, levels.alpha_bar[-1], levels.alpha_bar[1])
    return float((sample(gaussian, x, stop=1, **({"levels": levels} | walk)) - exact).abs().max())


# ------------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp-2m", 2), ("plms", 2), ("unipc", 3)])
def test_the_order_of_each_solver(gaussian, name, order, at_the_end, x0):
    x = at_the_end(x0)
    coarse, fine = (error(gaussian, n, x, **SOLVERS[name].walk(even(gaussian.schedule, n))) for n in (60, 120))
    assert order - 0.35 < math.log2(coarse / fine) < order + 0.6


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 3, 30])
def test_a_denoiser_that_knows_x0_leads_to_x0(name, n, x0, noise, at_the_end):
    walk = SOLVERS[name].walk(Schedule.linear().levels(n, spacing="leading", offset=1))
    out = sample(Oracle(x0), at_the_end(x0), noise=noise(x0), **walk)
    torch.testing.assert_close(out, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "ddim-eta1", "ddpm", "dpmpp-2m", "unipc"])  # the others refuse it in a line
def test_a_start_without_any_signal_leads_to_x0_too(name, x0, noise):
    walk = SOLVERS[name].walk(SOLVERS[name].levels(ZERO_SNR, 20, trailing=True))
    assert walk["levels"].alpha_bar[-1] == 0
    last = walk["levels"].alpha_bar[0] ** 0.5  # what is left of x0 where the levels end
    out = sample(Oracle(x0, ZERO_SNR), noise(x0)(20), noise=noise(x0), **walk)
    assert out.isfinite().all() and float((out - last * x0).abs().max()) < 4 * (1 - last**2) ** 0.5 + 1e-6


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_to_its_own_level_and_a_first_step(name):
    levels = Schedule.linear().levels(20, spacing="leading")
    x, eps, noise = (random((2, *SHAPE), n) for n in range(3))
    pred = Prediction((x - levels.noise(9) * eps) / levels.signal(9), eps)
    step = SOLVERS[name].step
    assert step(levels, 9, 9, x, pred, [], noise) is x
    if name in DETERMINISTIC:
        torch.testing.assert_close(step(levels, 9, 8, x, pred, [], None), move(levels, 9, 8, x, eps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", [plms, unipc])
def test_steps_up_are_refused(step):
    x = random((2, *SHAPE))
    with pytest.raises(ValueError, match="cannot step up, got a step from level 3 to 4"):
        step(Schedule.linear().levels(20), 3, 4, x, Prediction(x, x), [], None)


# --------------------------------------------------------------------------------------------------------- ancestral


def test_euler_ancestral_is_the_rule_of_k_diffusion():
    levels = Schedule.scaled_linear().levels(20, spacing="trailing")
    i, j = 12, 11
    x, eps, noise = (random((2, *SHAPE), n) for n in range(3))
    pred = Prediction((x - levels.noise(i) * eps) / levels.signal(i), eps)
    high, low = (levels.noise(k) / levels.signal(k) for k in (i, j))
    up = math.sqrt(low**2 * (high**2 - low**2) / high**2)
    formula = pred.x0 + math.sqrt(low**2 - up**2) * eps + up * noise
    out = SOLVERS["euler-ancestral"].step(levels, i, j, x, pred, [], noise)
    torch.testing.assert_close(out, levels.signal(j) * formula, rtol=1e-12, atol=1e-12)


def test_noise_of_another_scale_leaves_the_distribution(gaussian):
    """Easy wrong versions: the noise of x / a added to x, and the state's own s_j once more."""
    x, levels = random((500, *SHAPE), 5), gaussian.schedule.levels(100)
    right = SOLVERS["euler-ancestral"].step

    def scaled(by):
        return lambda levels, i, j, x, pred, history, noise: right(levels, i, j, x, pred, history, by(levels, j) * noise)

    def spread(step):
        generator = torch.Generator().manual_seed(3)
        drawn = lambda i: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
        out = sample(gaussian, x, levels, step=step, noise=drawn).flatten(1)
        return float((((out - gaussian.mean) @ gaussian.basis).var(0) / gaussian.eigenvalues).mean())

    assert 0.85 < spread(right) < 1.05
    assert spread(scaled(lambda levels, j: 1 / levels.signal(j))) > 2
    assert spread(scaled(lambda levels, j: levels.noise(j))) < 0.6


# --------------------------------------------------------------------------------------------------------------- PLMS


def test_the_warm_up_is_one_more_query_at_the_second_level(gaussian, x0):
    levels = gaussian.schedule.levels(6, spacing="leading", offset=1)
    counted = Calls(gaussian)
    sample(counted, x0, **SOLVERS["plms"].walk(levels))
    down = list(levels.times[:0:-1])
    assert counted.times == [down[0], down[1], *down[1:]]
    walked = warm_up(levels, 4)
    assert walked.times == (*levels.times[:4], levels.times[3], *levels.times[4:]) and len(walked) == 8
    assert warm_up(levels, 1) is levels and warm_up(levels, 0) is levels


def test_the_warm_up_is_a_heun_step(wavy, x0):
    levels = wavy.schedule.levels(6, spacing="leading", offset=1)
    first = wavy(x0, levels.times[6]).eps
    second = wavy(move(levels, 6, 5, x0, first), levels.times[5]).eps
    out = sample(wavy, x0, stop=5, **SOLVERS["plms"].walk(levels))
    torch.testing.assert_close(out, move(levels, 6, 5, x0, (first + second) / 2), rtol=1e-9, atol=1e-9)


def test_the_warm_up_pays(gaussian, x0):
    levels = even(gaussian.schedule, 10, 50, 400)
    assert error(gaussian, 10, x0, **SOLVERS["plms"].walk(levels)) < 0.5 * error(gaussian, 10, x0, step=plms, levels=levels)


def test_the_extra_query_is_not_part_of_the_mean(wavy, x0):
    """Easy wrong version: the mean of the newest queries, though two of them are at one level."""
    levels = wavy.schedule.levels(6, spacing="leading", offset=1)
    seen = []
    sample(wavy, x0, on_step=lambda i, j, x, pred: seen.append((x, pred.eps)), **SOLVERS["plms"].walk(levels))
    (_, first), (corrected, extra), (landed, second), (after, third), *_ = seen
    torch.testing.assert_close(landed, move(levels, 5, 4, corrected, (3 * second - first) / 2), rtol=1e-9, atol=1e-9)
    three = (23 * third - 16 * second + 5 * first) / 12
    torch.testing.assert_close(after, move(levels, 4, 3, landed, three), rtol=1e-9, atol=1e-9)
    assert (landed - move(levels, 5, 4, corrected, (3 * second - extra) / 2)).abs().max() > 1e-4


def test_a_walk_begins_where_an_inversion_ended(gaussian, x0, noise):
    trajectory = SDEdit(0.5).invert(gaussian, x0, gaussian.schedule.levels(40), noise=noise(x0))
    exact = gaussian.flow(trajectory.x, trajectory.levels.alpha_bar[20], 1.0)
    for name in DETERMINISTIC:
        counted = Calls(gaussian)
        walk = replay(trajectory) | SOLVERS[name].walk(trajectory.levels, trajectory.start)
        assert (sample(counted, **walk) - exact).abs().max() < 0.15
        assert counted.times[0] == trajectory.levels.times[20] and len(counted.times) == (21 if name == "plms" else 20)


# -------------------------------------------------------------------------------------------------------------- UniPC


def test_unipc_equals_the_form_that_keeps_the_state(wavy, at_the_end, x0):
    """The paper's form: the corrector starts again from the corrected state of the level before."""
    levels = wavy.schedule.levels(8, spacing="trailing")
    a, s = levels.signal, levels.noise
    lam = [math.inf] + [math.log(a(i) / s(i)) for i in range(1, 9)]
    x, past, order = at_the_end(x0), [], 0
    for i in range(8, 0, -1):
        m = wavy(x, levels.times[i]).x0
        if past:
            (k, corrected, m0), h = past[-1], lam[i] - lam[past[-1][0]]
            base = s(i) / s(k) * corrected - a(i) * math.expm1(-h) * m0
            b1 = (math.expm1(-h) / -h - 1) / math.expm1(-h)
            b2 = 2 * ((math.expm1(-h) / -h - 1) / -h - 0.5) / math.expm1(-h)
            if order == 1:
                x = base - a(i) * math.expm1(-h) * 0.5 * (m - m0)
            else:
                r = (lam[past[-2][0]] - lam[k]) / h
                rho = torch.linalg.solve(*(torch.tensor(each, dtype=x.dtype) for each in ([[1, 1], [r, 1]], [b1, b2])))
                x = base - a(i) * math.expm1(-h) * (rho[0] * (past[-2][2] - m0) / r + rho[1] * (m - m0))
        order = 1 if i == 1 or not past else 2
        past.append((i, x, m))
        landed = s(i - 1) / s(i) * x - a(i - 1) * math.expm1(lam[i] - lam[i - 1]) * m
        if order == 2:
            h = lam[i - 1] - lam[i]
            r = (lam[past[-2][0]] - lam[i]) / h
            landed = landed - a(i - 1) * math.expm1(-h) * 0.5 * (past[-2][2] - m) / r
        x = landed
    out = sample(wavy, at_the_end(x0), levels, step=unipc)
    torch.testing.assert_close(out, x, rtol=1e-9, atol=1e-9)


def test_unipc_without_its_corrector_is_dpm_solver(gaussian, at_the_end, x0):
    levels, x = even(gaussian.schedule, 20), at_the_end(x0)
    predictor = sample(gaussian, x, levels, step=dpmpp_2m, stop=1)
    assert (sample(gaussian, x, levels, step=unipc, stop=1) - predictor).abs().max() > 1e-3
    assert error(gaussian, 20, x, step=unipc) < 0.5 * error(gaussian, 20, x, step=dpmpp_2m)
    assert torch.equal(sample(gaussian, x, levels, step=unipc, stop=20), sample(gaussian, x, levels, step=dpmpp_2m, stop=20))


# -------------------------------------------------------------------------------------------------- what all share


@pytest.mark.parametrize("step", [plms, unipc])
def test_a_history_shared_over_calls_is_another_result(gaussian, step, x0):
    """Easy wrong version: one solver object for two runs, as diffusers' schedulers are."""
    levels, shared = gaussian.schedule.levels(10), []

    def leaky(levels, i, j, x, pred, history, noise):
        landed = step(levels, i, j, x, pred, shared, noise)
        shared.append((i, pred))
        return landed

    first = sample(gaussian, x0, levels, step=step)
    assert torch.equal(sample(gaussian, x0, levels, step=step), first)
    assert torch.equal(sample(gaussian, x0, levels, step=leaky), first)
    assert not torch.allclose(sample(gaussian, x0, levels, step=leaky), first, rtol=1e-3)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_gradients_flow_through_every_solver(wavy, name, x0):
    walk = SOLVERS[name].walk(wavy.schedule.levels(5))
    x = x0[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample(wavy, x, **walk).flatten()[:3], (x,))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_mean_shift_is_added_once(name):
    levels = Schedule.linear().levels(20, spacing="leading")
    x, x0, eps, shift = (random((2, *SHAPE), n) for n in range(4))
    history = [(k, Prediction(random((2, *SHAPE), 10 + k), random((2, *SHAPE), 20 + k))) for k in (12, 11, 10)]
    plain, shifted = (
        SOLVERS[name].step(levels, 9, 8, x, Prediction(x0, eps, mean_shift=each), history, None) for each in (None, shift)
    )
    torch.testing.assert_close(shifted - plain, shift)


# ---------------------------------------------------------------------------------------------------------- both ends


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "plms"])
def test_v_models_start_where_there_is_no_signal(name, x0, noise, at_the_end):
    """From pure noise the first step can know no more than x0; the more steps, the nearer to the exact flow."""
    wavy, gaussian = Wavy(ZERO_SNR, "v", bend=0.1), Gaussian(ZERO_SNR)
    gaussian.parameterization = "v"
    x = at_the_end(x0)
    levels = ZERO_SNR.levels(100, spacing="trailing")
    assert levels.alpha_bar[-1] == 0 and sample(wavy, x, noise=noise(x0), **SOLVERS[name].walk(levels)).isfinite().all()
    if name in DETERMINISTIC:
        assert (sample(gaussian, x, **SOLVERS[name].walk(levels)) - gaussian.flow(x, 0.0, 1.0)).abs().max() < 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_eps_models_cannot_start_where_there_is_no_signal(name, x0, noise):
    gaussian, levels = Gaussian(ZERO_SNR), ZERO_SNR.levels(10, spacing="trailing")
    walk = SOLVERS[name].walk(levels)
    with pytest.raises(UsageError, match="eps-prediction model says nothing of the image there: use a v-prediction"):
        sample(gaussian, x0, noise=noise(x0), **walk)
    assert sample(gaussian, x0, noise=noise(x0), **SOLVERS[name].walk(levels, 9)).isfinite().all()
    assert sample(gaussian, x0, levels, start=10, stop=10) is x0


def test_plms_is_undefined_where_there_is_no_signal(x0):
    with pytest.raises(UsageError, match="use ddim, dpmpp-2m or unipc"):
        sample(Wavy(ZERO_SNR, "v"), x0, **SOLVERS["plms"].walk(ZERO_SNR.levels(10, spacing="trailing")))


@pytest.mark.parametrize("step", [dpmpp_2m, unipc])
def test_the_limit_of_a_vanishing_signal_is_the_step_without_signal(step):
    """Coefficients at alpha_bar 0 are the limits of those above it, though log-SNR is infinite there."""
    kept = ZERO_SNR.levels(12, spacing="trailing")

    def out(lowest):
        levels = Levels((*kept.alpha_bar[:-1], lowest), kept.times)
        preds = [Prediction(random((2, *SHAPE), i), random((2, *SHAPE), 50 + i)) for i in range(13)]
        history, states = [], []
        for i in (12, 11, 10):
            states.append(step(levels, i, i - 1, random((2, *SHAPE), 99), preds[i], history, None))
            history.append((i, preds[i]))
        return torch.stack(states)

    distances = [float((out(lowest) - out(0.0)).abs().max()) for lowest in (1e-4, 1e-40, 1e-300)]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 0.05


# -------------------------------------------------------------------------------------------------------------- table


def test_a_wrong_name_suggests_the_right_one():
    assert solver_named("unipc").step is unipc
    with pytest.raises(UsageError, match="no solver 'uni-pc'. Did you mean 'unipc'. Choose from ddim, ddim-eta1, ddpm, euler"):
        solver_named("uni-pc")


def test_a_walk_on_plain_levels_is_the_loop_itself(gaussian, x0):
    levels = gaussian.schedule.levels(10)
    assert SOLVERS["unipc"].walk(levels) == {"step": unipc, "levels": levels, "start": 10}
    assert torch.equal(sample(gaussian, x0, **SOLVERS["euler"].walk(levels)), sample(gaussian, x0, levels, step=partial(ddim)))


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_is_drawn_for_the_steps_that_add_it_and_for_no_other(wavy, name, x0, noise):
    solver, levels, drawn = SOLVERS[name], wavy.schedule.levels(5), []
    walk = solver.walk(levels, noise=lambda i: drawn.append(i) or noise(x0)(i))
    sample(wavy, x0, **walk)
    assert bool(drawn) == solver.stochastic
    if solver.stochastic:
        with pytest.raises(ValueError, match="this step adds noise"):
            sample(wavy, x0, **solver.walk(levels))
    else:
        assert torch.equal(sample(wavy, x0, **walk), sample(wavy, x0, **solver.walk(levels)))
