"""Inverters: round trips, and what each is allowed to lose."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch

from editkit.engine.guidance import ClassifierFree, Guided
from editkit.engine.invert import DDIM, GUIDED, INVERTERS, EditFriendly, FixedPoint, SDEdit, replay
from editkit.engine.multistep import dpmpp_2m
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddim
from editkit.errors import UsageError
from editkit.types import Condition, Prediction
from tests.engine.stand_ins import SHAPE, Calls, Wavy, assert_near, random

FLOOR = 1e-10


def round_trip(denoiser, inverter, x0, levels, noise=None, **arguments):
    back = replay(inverter.invert(denoiser, x0, levels, noise=noise)) | {"stop": levels.entry} | arguments
    return float((sample(denoiser, **back) - x0).abs().max())


class Linear:
    """eps(x, t) = c x, so that inversion has a closed form."""

    parameterization = "eps"
    schedule = Schedule.linear()

    def __call__(self, x, t, cond=None):
        return self.schedule.convert(x, t, 0.3 * x, "eps")


@pytest.mark.parametrize("query", ["source", "target"])
def test_a_linear_network_gives_the_closed_form(query, x0):
    levels = Linear.schedule.levels(10, spacing="linspace")
    factor = 1.0
    for i in range(10):
        ratio = levels.signal(i + 1) / levels.signal(i)
        factor *= ratio + (levels.noise(i + 1) - ratio * levels.noise(i)) * 0.3
    torch.testing.assert_close(DDIM(query).invert(Linear(), x0, levels).x, factor * x0, rtol=1e-12, atol=1e-12)


def test_inversion_of_a_gaussian_is_the_inverse_flow(gaussian, x0):
    def error(n, query):
        levels = gaussian.schedule.levels(n)
        exact = gaussian.flow(x0, levels.alpha_bar[1], levels.alpha_bar[-1])
        return float((DDIM(query).invert(gaussian, x0, levels).x - exact).abs().max())

    for query in ("source", "target"):
        assert error(200, query) < 0.2
        assert 1.6 < error(100, query) / error(200, query) < 2.4


@pytest.mark.parametrize("query", ["source", "target"])
def test_the_round_trip_error_of_naive_inversion_falls_like_one_over_n(wavy, x0, query):
    errors = {n: round_trip(wavy, DDIM(query), x0, wavy.schedule.levels(n)) for n in (50, 100, 200)}
    assert errors[50] > errors[100] > errors[200] > 1e-5
    assert 1.5 < errors[100] / errors[200] < 2.6


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_fixed_point_refinement_converges_geometrically(kind, x0):
    wavy = Wavy(kind=kind, bend=0.1).requires_grad_(False)
    levels = wavy.schedule.levels(20)
    errors = [round_trip(wavy, FixedPoint(k, tolerance=0), x0, levels) for k in (0, 1, 2, 3, 5)]
    assert errors[0] > 1e-3
    assert all(later < 0.45 * earlier for earlier, later in itertools.pairwise(errors))
    assert round_trip(wavy, FixedPoint(60, tolerance=0), x0, levels) < FLOOR


def test_no_refinement_is_naive_inversion_at_the_target(wavy, x0):
    levels = wavy.schedule.levels(10)
    torch.testing.assert_close(
        FixedPoint(0).invert(wavy, x0, levels).x, DDIM("target").invert(wavy, x0, levels).x, rtol=0, atol=0
    )


def test_velocity_models_invert_down_to_no_signal_at_all(x0):
    """The angle form stays finite where alpha_bar is 0; along eps every state there would be a solution."""
    wavy = Wavy(Schedule.scaled_linear().zero_terminal_snr(), kind="v", bend=0.1).requires_grad_(False)
    levels = wavy.schedule.levels(20, spacing="trailing")
    assert levels.alpha_bar[-1] == 0
    assert round_trip(wavy, FixedPoint(80, tolerance=0), x0, levels) < FLOOR
    naive = round_trip(wavy, DDIM("target"), x0, levels)
    assert FLOOR < naive < 1.0 and naive > round_trip(wavy, FixedPoint(2), x0, levels)


def test_velocity_converted_at_the_source_level_is_worse(x0):
    """Easy wrong version: ask v at the target time but turn it into eps with the source's alpha_bar."""
    wavy = Wavy(kind="v", bend=0.1).requires_grad_(False)
    levels = wavy.schedule.levels(20, spacing="leading", offset=1)
    x = x0
    for i in range(len(levels) - 1):
        pred = wavy(x, levels.times[i + 1])
        v = levels.signal(i + 1) * pred.eps - levels.noise(i + 1) * pred.x0
        a, s = levels.signal(i), levels.noise(i)
        x = ddim(levels, i, i + 1, x, Prediction(a * x - s * v, a * v + s * x), [], None)
    wrong = float((sample(wavy, x, levels) - x0).abs().max())
    assert round_trip(wavy, DDIM("target"), x0, levels) < 0.8 * wrong


def test_a_converged_trajectory_is_the_path_back(wavy, x0):
    levels = wavy.schedule.levels(20)
    trajectory = FixedPoint(60, tolerance=0, pivots=True).invert(wavy, x0, levels)
    assert torch.equal(trajectory.states[levels.entry], x0) and sorted(trajectory.states) == list(range(1, 21))

    def check(i, j, x, pred):
        if j >= levels.entry:
            torch.testing.assert_close(x, trajectory.states[j], rtol=1e-9, atol=1e-9)

    sample(wavy, **replay(trajectory), on_step=check)


def test_the_inverse_belongs_to_the_sampler_that_decodes(wavy, x0):
    """Easy wrong version: invert DDIM, decode with DPM-Solver++ 2M."""
    levels = wavy.schedule.levels(20)
    assert round_trip(wavy, FixedPoint(60, tolerance=0), x0, levels, step=dpmpp_2m) > 1e-2


def test_inverting_and_sampling_with_different_ends_does_not_come_back(wavy, x0):
    """Easy wrong version: alpha_bar 1 on the way up, that of time 0 on the way down (offset 1: both are moves)."""
    up = wavy.schedule.levels(20, spacing="leading", offset=1)
    down = wavy.schedule.levels(20, spacing="leading", offset=1, clean="ab0")
    noisy = FixedPoint(60, tolerance=0).invert(wavy, x0, up).x
    assert (sample(wavy, noisy, up) - x0).abs().max() < FLOOR
    assert (sample(wavy, noisy, down) - x0).abs().max() > 1e-4


@pytest.mark.parametrize("compact", [True, False])
def test_every_sample_stops_by_itself(compact, x0):
    wavy = Wavy(bend=0.1).requires_grad_(False)
    levels = wavy.schedule.levels(20)
    mixed = x0 * torch.tensor([1e-3, 1.0, 3.0]).reshape(-1, 1, 1, 1)
    inverter = FixedPoint(40, tolerance=1e-6, compact=compact)
    counted = Calls(wavy)
    together = inverter.invert(counted, mixed, levels)
    evaluations = []
    for n in range(3):
        alone = inverter.invert(wavy, mixed[n : n + 1], levels)
        torch.testing.assert_close(alone.x[0], together.x[n], rtol=1e-9, atol=1e-9)
        evaluations += alone.report["evaluations"]
    assert evaluations == together.report["evaluations"] and len(set(evaluations)) > 1
    assert together.calls == len(counted.batches) < 19 * 41
    assert (min(counted.batches) == 1) == compact
    assert max(together.report["residual"]) < 1e-6 and not any(together.report["diverged"])


def test_a_diverging_sample_keeps_its_best_iterate_and_warns(x0):
    steep = Wavy(bend=0.0).requires_grad_(False)
    levels = steep.schedule.levels(4)

    class Steep:
        schedule, parameterization = steep.schedule, "eps"

        def __call__(self, x, t, cond=None):
            return self.schedule.convert(x, t, x.sign() * x.abs() ** 3, "eps")

    mixed = torch.cat([0.01 * x0[:1], 3 * x0[1:2]])
    with pytest.warns(UserWarning, match=r"samples \[1\]"):
        trajectory = FixedPoint(10).invert(Steep(), mixed, levels)
    assert trajectory.report["diverged"][0] == 0 and trajectory.report["diverged"][1] > 0
    assert trajectory.x.isfinite().all()  # the last iterates run away to infinity


def test_calls_of_the_ode_inverters(wavy, x0):
    for levels, moves in ((wavy.schedule.levels(8), 7), (wavy.schedule.levels(8, spacing="leading", offset=1), 8)):
        for inverter, calls in ((DDIM(), moves), (DDIM("target"), moves), (FixedPoint(3, tolerance=0), 4 * moves)):
            counted = Calls(wavy)
            assert inverter.invert(counted, x0, levels).calls == len(counted.times) == calls


def test_the_clean_end_is_never_asked(wavy, x0):
    counted = Calls(wavy)
    levels = wavy.schedule.levels(8, spacing="leading", offset=1)
    DDIM("source").invert(counted, x0, levels)
    assert counted.times[:2] == [1, 1] and min(counted.times) >= 0


def test_inversion_is_differentiable(wavy, x0):
    levels = wavy.schedule.levels(4)
    x = x0[:1].clone().requires_grad_()
    for inverter in (DDIM(), FixedPoint(2, tolerance=0)):
        assert torch.autograd.gradcheck(lambda x, f=inverter: f.invert(wavy, x, levels).x.flatten()[:3], (x,))


# ------------------------------------------------------------------------------------------------------ stochastic


@pytest.mark.parametrize("grid", [{}, {"spacing": "leading", "offset": 1}, {"spacing": "leading", "clean": "ab0"}])
def test_edit_friendly_noises_reconstruct_exactly(wavy, x0, noise, grid):
    levels = wavy.schedule.levels(20, **grid)
    counted = Calls(wavy)
    trajectory = EditFriendly().invert(counted, x0, levels, noise=noise(x0))
    assert trajectory.calls == len(counted.times) == len(levels) - 1 - levels.entry
    state = torch.get_rng_state()
    out = sample(wavy, **replay(trajectory), stop=levels.entry)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(out, x0, rtol=1e-10, atol=1e-10)


def test_in_sequence_the_way_back_visits_the_same_bits(wavy, x0, noise):
    """Each corrected state, mean + sigma z, is what the way back computes: rounding cannot drift."""
    levels, x0 = wavy.schedule.levels(20), x0.float()
    trajectory = EditFriendly(pivots=True).invert(wavy, x0, levels, noise=noise(x0))
    visited = {}
    back = replay(trajectory)
    sample(wavy, **back | {"on_step": lambda i, j, x, pred: visited.update({j: x})}, stop=2)
    assert len(visited) == 18 and all(torch.equal(visited[j], trajectory.states[j]) for j in visited)


def test_dropping_the_last_noise_is_not_exact(wavy, x0, noise):
    levels = wavy.schedule.levels(20, spacing="leading", offset=1)
    assert round_trip(wavy, EditFriendly(keep_last=False), x0, levels, noise(x0)) > 1e-3


def test_two_seeds_give_other_noises_and_the_same_reconstruction(wavy, x0, noise):
    levels = wavy.schedule.levels(20)
    one, other = (EditFriendly().invert(wavy, x0, levels, noise=noise(x0, seed)) for seed in (0, 1))
    assert not torch.allclose(one.noises[10], other.noises[10])
    for trajectory in (one, other):
        torch.testing.assert_close(sample(wavy, **replay(trajectory), stop=1), x0, rtol=1e-10, atol=1e-10)


def test_edit_friendly_time_batching(wavy, x0, noise):
    levels = wavy.schedule.levels(20)
    counted = Calls(wavy)
    batched = EditFriendly(time_batch=8).invert(counted, x0, levels, noise=noise(x0))
    assert batched.calls == 3 and counted.batches == [24, 24, 9]
    plain = EditFriendly().invert(wavy, x0, levels, noise=noise(x0))
    for i in plain.noises:
        torch.testing.assert_close(batched.noises[i], plain.noises[i], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sample(wavy, **replay(batched), stop=1), x0, rtol=1e-8, atol=1e-8)


def test_time_batching_of_a_network_with_a_condition_per_sample(gaussian, x0, noise):
    cond = Condition(vector=random((3, 48), 4))
    levels = gaussian.schedule.levels(9)
    guided = Guided(gaussian, ClassifierFree(3.5, Condition(vector=torch.zeros(1, 48))))
    plain, batched = (EditFriendly(time_batch=n).invert(guided, x0, levels, cond, noise=noise(x0)) for n in (1, 4))
    for i in plain.noises:
        torch.testing.assert_close(batched.noises[i], plain.noises[i], rtol=1e-5, atol=1e-5)


def test_skipping_every_level_returns_the_image_bit_for_bit(wavy, x0, noise):
    levels = wavy.schedule.levels(20)
    for skip in (19, 50):
        trajectory = EditFriendly(skip=skip).invert(wavy, x0, levels, noise=noise(x0))
        assert trajectory.calls == 0 and torch.equal(sample(wavy, **replay(trajectory), stop=1), x0)
    partly = EditFriendly(skip=12).invert(wavy, x0, levels, noise=noise(x0))
    assert partly.start == 8 and partly.calls == 7 and sorted(partly.noises) == list(range(2, 9))


def test_edit_friendly_noise_is_independent_across_levels(gaussian, noise):
    """Easy wrong version: the same noise at every level. Its maps collapse; the real ones are larger than standard."""
    x0 = gaussian.flow(random((40, *SHAPE), 9), float(gaussian.schedule.table[-1]), 1.0)
    levels = gaussian.schedule.levels(50)
    right = EditFriendly().invert(gaussian, x0, levels, noise=noise(x0))
    fixed = noise(x0)(0)
    wrong = EditFriendly().invert(gaussian, x0, levels, noise=lambda i: fixed)

    def spread(trajectory):
        return sum(float(trajectory.noises[i].std()) for i in range(10, 40)) / 30

    assert spread(right) > 1.3 and spread(wrong) < 0.7


def test_a_noised_start(gaussian, x0, noise):
    levels = gaussian.schedule.levels(10)
    drawn = noise(x0)
    for strength, start in ((0.0, 0), (0.29, 2), (0.3, 3), (0.5, 5), (1.0, 10)):
        trajectory = SDEdit(strength).invert(gaussian, x0, levels, noise=drawn)
        assert trajectory.start == start and trajectory.calls == 0
        if start:
            expected = levels.signal(start) * x0 + levels.noise(start) * drawn(start)
            assert torch.equal(trajectory.x, expected)
    hundred = gaussian.schedule.levels(100, spacing="leading")
    assert SDEdit(0.29).invert(gaussian, x0, hundred, noise=drawn).start == 29  # although 100 * 0.29 < 29 in floating point
    assert torch.equal(sample(gaussian, **replay(SDEdit(0.0).invert(gaussian, x0, levels))), x0)
    counted = Calls(gaussian)
    sample(counted, **replay(SDEdit(0.5).invert(gaussian, x0, levels, noise=drawn)))
    assert len(counted.times) == 5
    many = random((400, *SHAPE), 3)
    noisy = SDEdit(0.6).invert(gaussian, many, levels, noise=lambda i: random(many.shape, 4)).x
    assert math.isclose(
        float(noisy.std()), math.sqrt(levels.alpha_bar[6] * float(many.var()) + 1 - levels.alpha_bar[6]), rel_tol=0.02
    )


def test_inverters_by_name_and_wrong_settings(x0, gaussian):
    ode, noised = (
        {"ddim", "plms", "fixed-point", "renoise", "edict", "o-belm", "direct"},
        {"edit-friendly", "cycle-diffusion", "sdedit"},
    )
    assert set(INVERTERS) == ode | noised | GUIDED and {"null-text", "negative-prompt"} == GUIDED
    assert INVERTERS["ddim"](query="target").invert(gaussian, x0, gaussian.schedule.levels(4)).inverter == "ddim"
    for build in (partial(DDIM, "middle"), partial(SDEdit, 1.2), partial(EditFriendly, eta=0), partial(EditFriendly, skip=-1)):
        with pytest.raises(UsageError):
            build()
    for inverter in (SDEdit(0.5), EditFriendly()):
        with pytest.raises(ValueError, match="noise="):
            inverter.invert(gaussian, x0, gaussian.schedule.levels(4))


def test_a_batch_of_images_inverts_like_its_images_alone(backbone, images):
    levels = backbone.schedule.levels(4)  # a random network amplifies rounding from level to level
    with torch.no_grad():
        for inverter in (DDIM(), FixedPoint(1, tolerance=0)):
            together = inverter.invert(backbone, images, levels).x
            for n in range(len(images)):
                assert_near(inverter.invert(backbone, images[n : n + 1], levels).x[0], together[n], 1e-5)
