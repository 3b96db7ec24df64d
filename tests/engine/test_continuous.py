"""Continuous times: the spliced grid, and inversion along it by linear multistep."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from editkit.engine.continuous import COSINE_CROSSOVER, DDPM_CROSSOVER, ContinuousCosine, ddpm_time
from editkit.engine.invert import DDIM, INVERTERS, PLMS, replay
from editkit.engine.multistep import adams_bashforth
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddim, move
from editkit.types import Prediction
from tests.engine.stand_ins import SHAPE, Calls, Wavy, random


def test_signal_and_noise_are_cosine_and_sine_of_the_time():
    schedule = ContinuousCosine()
    for u in (0.0, 0.123, 0.5, 0.99571):
        a, s = schedule.coefficients(1000 * u, random(SHAPE, 0))
        assert a == pytest.approx(math.cos(math.pi * u / 2), abs=1e-12) and s == pytest.approx(
            math.sin(math.pi * u / 2), abs=1e-12
        )
    between = float(schedule.alpha_bar(123.4))
    assert abs(between - float(Schedule(schedule.table).alpha_bar(123.4))) > 1e-8, "exact, not between the whole times"
    assert float(schedule.alpha_bar(-1)) == 1 and len(schedule) == 1000
    with pytest.raises(ValueError, match="outside"):
        schedule.alpha_bar(1000.0)


def test_the_spliced_grid_is_the_published_one():
    schedule, n = ContinuousCosine(), 50
    levels = schedule.spliced(n)
    times = [t / 1000 for t in levels.times]
    assert len(levels) == n + 1 and levels.entry == 0 and times[0] == 0 and levels.alpha_bar[0] == 1
    published = {25: 0.6577, 30: 0.7892, 31: 0.8152, 50: 0.99571}
    assert all(times[k] == pytest.approx(value, abs=6e-5) for k, value in published.items())
    assert times[1] == pytest.approx(1.31537545 / n, abs=1e-9), "it begins as the cosine does"
    assert levels.signal(n) == pytest.approx(0.00674, abs=1e-5) and levels.noise(n) / levels.signal(n) == pytest.approx(
        148, abs=1
    )
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert all(levels.signal(k) ** 2 + levels.noise(k) ** 2 == pytest.approx(1) for k in range(n + 1))
    assert abs(ddpm_time(DDPM_CROSSOVER) - COSINE_CROSSOVER) < 1e-6, "where the curves are spliced they meet"
    assert ddpm_time(1.0) < 0.996 and times[-1] < 1, "the easy wrong version ends at 1, without any signal"


def test_one_constant_eps_is_followed_as_by_one_move(x0):
    """The mean of equal eps is that eps, up and down."""
    levels, eps = ContinuousCosine().spliced(12), random(x0.shape, 3)

    class Constant:
        schedule, parameterization = ContinuousCosine(), "eps"

        def __call__(self, x, t, cond=None):
            return self.schedule.convert(x, t, eps, "eps")

    found = PLMS().invert(Constant(), x0, levels)
    torch.testing.assert_close(found.x, move(levels, 0, 12, x0, eps), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sample(Constant(), **replay(found)), x0, rtol=1e-9, atol=1e-9)


def test_the_first_moves_take_one_eps_more_each(x0):
    levels = Schedule.linear().levels(10, spacing="linspace")
    preds = [Prediction(random(x0.shape, k), random(x0.shape, 10 + k)) for k in range(5)]
    weights = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for count in range(5):
        earlier = preds[1 : count + 1]
        mean = sum(w * pred.eps for w, pred in zip(weights[min(count, 3)], preds, strict=False))
        x = levels.signal(4) * preds[0].x0 + levels.noise(4) * preds[0].eps
        torch.testing.assert_close(adams_bashforth(levels, 4, 5, preds[0], earlier), move(levels, 4, 5, x, mean))
    assert torch.equal(adams_bashforth(levels, 4, 5, preds[0], []), ddim(levels, 4, 5, x, preds[0], (), None))


@pytest.mark.parametrize("schedule", [Schedule.linear(), ContinuousCosine()], ids=["discrete", "continuous"])
def test_a_picture_comes_back_better_than_by_ddim(schedule, x0):
    wavy = Wavy(schedule, kind="v", bend=0.1).requires_grad_(False)

    def lost(inverter, n):
        levels = schedule.spliced(n) if isinstance(schedule, ContinuousCosine) else schedule.levels(n)
        back = replay(inverter.invert(wavy, x0, levels)) | {"stop": levels.entry}
        return float((sample(wavy, **back) - x0).abs().mean())

    errors = {n: lost(PLMS(), n) for n in (25, 50, 100)}
    assert errors[25] > errors[50] > errors[100], "more levels, less error"
    assert all(2 * errors[n] < lost(DDIM(), n) for n in (50, 100))


def test_it_asks_once_a_level_and_is_found_by_its_name(wavy, x0):
    counted, levels = Calls(wavy), wavy.schedule.levels(8)
    found = INVERTERS["plms"]().invert(counted, x0, levels)
    assert found.calls == len(counted.batches) == 7 and counted.times == list(levels.times[1:-1])
    pivots = PLMS(pivots=True).invert(wavy, x0, levels)
    assert sorted(pivots.states) == list(range(1, 9)) and torch.equal(pivots.x, found.x)
    clean = wavy.schedule.levels(8, spacing="linspace")
    assert PLMS().invert(wavy, x0, clean).calls == 8, "the clean end has no time of its own: it asks at the target"
