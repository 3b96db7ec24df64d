"""ReNoise: fixed-point inversion along the mean of its last predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.ode import move_up
from editkit.engine.sample import Noise
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.errors import UsageError
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class ReNoise:
    """ReNoise inversion (arXiv 2403.14602, algorithm 1) for deterministic samplers of few steps.

    Each level is solved as by `FixedPoint`, and the move is made along the mean of the predictions of a window of the
    iterations. Two parts of the paper are left out: the regularisation of the noise, which gives up exactness, and the noise
    correction of stochastic samplers.

    Attributes:
        refinements: iterations after the first.
        window: (first, end) of the iterations that are averaged; none of them made = no averaging.
        early: model time below which the next two hold instead.
        early_refinements: most iterations after the first there.
        early_window: the window there.
        pivots: keep the states of all levels, not only the first and the last.

    Raises:
        UsageError: a window that is empty, or no iterations at all.
    """

    name: ClassVar[str] = "renoise"
    refinements: int = 9
    window: tuple[int, int] = (8, 10)
    early: float = 250.0
    early_refinements: int = 5
    early_window: tuple[int, int] = (0, 5)
    pivots: bool = False

    def __post_init__(self) -> None:
        if self.refinements < 0 or self.early_refinements < 0:
            raise UsageError(f"ReNoise needs refinements >= 0, got {self.refinements} and {self.early_refinements} early ones")
        for first, end in (self.window, self.early_window):
            if not 0 <= first < end:
                raise UsageError(f"a window of ReNoise's iterations is (first, end) with 0 <= first < end, got {(first, end)}")

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level."""
        x, last, calls = x0, len(levels) - 1, 0
        states = {levels.entry: x0}
        for i in range(levels.entry, last):
            early = levels.times[i + 1] < self.early
            refinements = min(self.refinements, self.early_refinements) if early else self.refinements
            y, preds = x, []
            for _ in range(refinements + 1):
                preds.append(denoiser(y, levels.times[i + 1], cond))
                y = move_up(denoiser.parameterization, levels, i, x, preds[-1])
            calls += len(preds)
            averaged = preds[slice(*(self.early_window if early else self.window))]
            x = move_up(denoiser.parameterization, levels, i, x, _mean(averaged)) if averaged else y
            if self.pivots or i + 1 == last:
                states[i + 1] = x
        settings = settings_of(self) | {"window": list(self.window), "early_window": list(self.early_window)}
        return Trajectory(levels, last, states, {}, self.name, settings, calls)


def _mean(preds: list[Prediction]) -> Prediction:
    return Prediction(torch.stack([pred.x0 for pred in preds]).mean(0), torch.stack([pred.eps for pred in preds]).mean(0))
