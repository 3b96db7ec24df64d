"""ReNoise: averages of fixed-point iterations."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.invert import DDIM, FixedPoint, ReNoise, replay
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import move
from editkit.errors import UsageError
from tests.engine.stand_ins import Calls, Wavy


def test_without_a_window_it_is_the_fixed_point_iteration(wavy, x0):
    levels = wavy.schedule.levels(6)
    for k in (0, 2):
        renoise = ReNoise(k, (k + 1, k + 2), early_window=(k + 1, k + 2))
        assert torch.equal(renoise.invert(wavy, x0, levels).x, FixedPoint(k, tolerance=0).invert(wavy, x0, levels).x)
    assert torch.equal(ReNoise(0, (0, 1)).invert(wavy, x0, levels).x, DDIM("target").invert(wavy, x0, levels).x)


def test_it_moves_along_the_mean_of_the_window(wavy, x0):
    """Early and late levels have their own numbers of iterations and windows."""
    levels = wavy.schedule.levels_at([100, 400, 700])
    x = x0
    for i, iterations, first, end in ((0, 2, 0, 2), (1, 4, 2, 4), (2, 4, 2, 4)):
        y, all_eps = x, []
        for _ in range(iterations):
            all_eps.append(wavy(y, levels.times[i + 1]).eps)
            y = move(levels, i, i + 1, x, all_eps[-1])
        x = move(levels, i, i + 1, x, sum(all_eps[first:end]) / (end - first))
    found = ReNoise(3, (2, 9), early_refinements=1, early_window=(0, 5)).invert
    counted = Calls(wavy)
    # the window (2, 9) holds the last two of four iterations
    torch.testing.assert_close(found(counted, x0, levels).x, x, rtol=1e-10, atol=1e-10)
    assert counted.times == [100] * 2 + [400] * 4 + [700] * 4


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_it_is_nearer_than_naive_inversion(kind, x0):
    wavy = Wavy(kind=kind, bend=0.1).requires_grad_(False)
    levels = wavy.schedule.levels(8)

    def away(inverter):
        return (sample(wavy, stop=levels.entry, **replay(inverter.invert(wavy, x0, levels))) - x0).abs().max()

    assert away(ReNoise()) < 0.5 * away(DDIM("target"))


def test_velocity_models_invert_down_to_no_signal_at_all(x0):
    wavy = Wavy(Schedule.scaled_linear().zero_terminal_snr(), kind="v", bend=0.1).requires_grad_(False)
    assert ReNoise().invert(wavy, x0, wavy.schedule.levels(4, spacing="trailing")).x.isfinite().all()


def test_wrong_settings():
    for settings in ({"refinements": -1}, {"window": (3, 3)}, {"early_window": (-1, 2)}):
        with pytest.raises(UsageError, match="ReNoise"):
            ReNoise(**settings)
