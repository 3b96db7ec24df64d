"""The one loop, on denoisers with known answers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from editkit.engine.multistep import dpmpp_2m
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddim, ddpm
from editkit.types import Prediction
from tests.engine.stand_ins import SHAPE, Calls, Gaussian, Oracle, Wavy, assert_near, random

STEPS = {"ddim": ddim, "eta": partial(ddim, eta=1.0), "ddpm": ddpm, "2m": dpmpp_2m}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("n", [2, 7, 50])
def test_a_denoiser_that_knows_x0_leads_to_x0(name, n, x0, noise, at_the_end):
    levels = Schedule.linear().levels(n)
    out = sample(Oracle(x0), at_the_end(x0), levels, step=STEPS[name], noise=noise(x0))
    torch.testing.assert_close(out, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("step", "order"), [(ddim, 1), (dpmpp_2m, 2)])
def test_the_sampling_ode_is_solved_with_the_order_of_the_solver(gaussian, step, order, at_the_end, x0):
    x = at_the_end(x0)

    def error(n):
        levels = gaussian.schedule.levels_at([199 + 800 * k / n for k in range(n + 1)])
        exact = gaussian.flow(x, levels.alpha_bar[-1], levels.alpha_bar[1])
        return float((sample(gaussian, x, levels, step=step, stop=1) - exact).abs().max())

    assert error(100) < 0.1
    assert 2**order * 0.8 < error(50) / error(100) < 2**order * 1.25


def test_noise_becomes_the_data_distribution(gaussian):
    x = random((4000, *SHAPE), 5)
    out = sample(gaussian, x, gaussian.schedule.levels(100)).flatten(1)
    assert (out.mean(0) - gaussian.mean).abs().max() < 0.08
    variances = ((out - gaussian.mean) @ gaussian.basis).var(0)
    torch.testing.assert_close(variances, gaussian.eigenvalues, rtol=0.15, atol=0.01)


@pytest.mark.parametrize("step", [partial(ddim, eta=1.0), ddpm])
def test_stochastic_steps_reach_the_data_distribution_too(gaussian, step):
    x = random((1000, *SHAPE), 5)
    generator = torch.Generator().manual_seed(3)
    drawn = lambda i: torch.randn(x.shape, generator=generator, dtype=x.dtype)  # noqa: E731
    out = sample(gaussian, x, gaussian.schedule.levels(200), step=step, noise=drawn).flatten(1)
    assert (out.mean(0) - gaussian.mean).abs().max() < 0.2
    variances = ((out - gaussian.mean) @ gaussian.basis).var(0)
    torch.testing.assert_close(variances, gaussian.eigenvalues, rtol=0.25, atol=0.02)


def test_one_call_per_level_at_the_listed_times(gaussian, x0):
    counted = Calls(gaussian)
    levels = gaussian.schedule.levels(12)
    sample(counted, x0, levels)
    assert counted.times == list(levels.times[:0:-1]) and counted.batches == [3] * 12


def test_strength_boundaries(gaussian, x0):
    counted = Calls(gaussian)
    levels = gaussian.schedule.levels(12)
    assert sample(counted, x0, levels, start=5, stop=5) is x0 and not counted.times
    sample(counted, x0, levels, start=1)
    assert counted.times == [0]
    half = sample(gaussian, x0, levels, stop=6)
    assert torch.equal(sample(gaussian, half, levels, start=6), sample(gaussian, x0, levels))
    for start, stop in ((13, 0), (4, 5), (4, -1)):
        with pytest.raises(ValueError, match="cannot go"):
            sample(gaussian, x0, levels, start=start, stop=stop)


def test_deterministic_sampling_draws_no_noise(backbone, images):
    state = torch.get_rng_state()
    with torch.no_grad():
        first = sample(backbone, images, backbone.schedule.levels(4))
        again = sample(backbone, images, backbone.schedule.levels(4))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(first, again)


def test_a_batch_equals_its_samples_alone(backbone, images, noise):
    levels = backbone.schedule.levels(6)
    for step in (ddim, partial(ddim, eta=1.0), dpmpp_2m):
        z = noise(images)
        with torch.no_grad():
            together = sample(backbone, images, levels, step=step, noise=z)
            for n in range(len(images)):
                alone = sample(backbone, images[n : n + 1], levels, step=step, noise=lambda i, n=n, z=z: z(i)[n : n + 1])
                assert_near(alone[0], together[n], 1e-5)


def test_gradients_flow_through_the_loop_as_the_caller_chooses(wavy, x0):
    levels = wavy.schedule.levels(5)
    for step in (ddim, dpmpp_2m):
        x = x0[:1].clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, step=step: sample(wavy, x, levels, step=step).flatten()[:3], (x,))
    assert not sample(wavy, x0, levels).requires_grad
    trained = Wavy()
    sample(trained, x0, levels).square().mean().backward()
    assert trained.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert not sample(trained, x0, levels).requires_grad


def test_on_step_sees_every_step_and_may_replace_the_state(gaussian, x0):
    levels = gaussian.schedule.levels(5)
    seen = []

    def watch(i, j, x, pred):
        assert isinstance(pred, Prediction)
        seen.append((i, j))

    out = sample(gaussian, x0, levels, on_step=watch)
    assert seen == [(5, 4), (4, 3), (3, 2), (2, 1), (1, 0)]
    assert torch.equal(out, sample(gaussian, x0, levels))
    assert torch.equal(sample(gaussian, x0, levels, on_step=lambda i, j, x, pred: x0 if j == 0 else None), x0)


def test_the_history_belongs_to_one_call(gaussian, x0):
    """Easy wrong version: one solver object for two runs, whose history leaks from the first into the second."""
    levels = gaussian.schedule.levels(10)
    shared = []

    def leaky(levels, i, j, x, pred, history, noise):
        landed = dpmpp_2m(levels, i, j, x, pred, shared, noise)
        shared.append((i, pred))
        return landed

    first = sample(gaussian, x0, levels, step=dpmpp_2m)
    assert torch.equal(sample(gaussian, x0, levels, step=dpmpp_2m), first)
    assert torch.equal(sample(gaussian, x0, levels, step=leaky), first)
    leaked = sample(gaussian, x0, levels, step=leaky)
    assert not torch.allclose(leaked, first)


def test_half_precision_states_are_refused(gaussian, x0):
    with pytest.raises(ValueError, match=r"x\.float"):
        sample(gaussian, x0.bfloat16(), gaussian.schedule.levels(5))


def test_a_wrapped_schedule_samples_in_float64(x0):
    cosine = Gaussian(Schedule.cosine())
    assert sample(cosine, x0, cosine.schedule.levels(5)).dtype == torch.float64
