"""EDICT: two states that are each moved along the noise predicted at the other one, invertible by algebra."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.pair import dtype_name, first_as, halves, join
from editkit.engine.sample import Ask, Noise
from editkit.engine.steps import History, move
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.errors import UsageError
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class EDICT:
    """Exact diffusion inversion via coupled transformations (arXiv 2211.12446, eqs. 14 and 15); two queries a level.

    The way back ends at the floor of float64 for any network, guidance and condition, if they are the same both ways: put
    guidance into the denoiser (`Guided`) here and into `sample` there. Each step up amplifies the distance of the two
    states by 1 / mixing^2, 1400-fold over 50 levels by default; a warning is given where they have come apart. States hold
    both, (B, 2C, H, W); see `editkit.engine.pair`.

    Attributes:
        mixing: weight p of a state itself when the two are averaged after a step down; 1 leaves them apart.
        pivots: keep the states of all levels, not only the first and the last.

    `report` gives per sample "gap", the largest distance of the two states at the noisy end.

    Raises:
        UsageError: a mixing weight outside (0.5, 1].
    """

    name: ClassVar[str] = "edict"
    mixing: float = 0.93
    pivots: bool = False

    def __post_init__(self) -> None:
        if not 0.5 < self.mixing <= 1:
            raise UsageError(f"the mixing weight of EDICT must be above 0.5 and at most 1, got {self.mixing}: try 0.93")

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), as both states at the entry level, up to the noisiest level."""
        entry, last = levels.entry, len(levels) - 1
        x = join(x0, x0).double()
        states = {entry: x}
        for j in range(entry, last):
            i = j + 1
            ask = partial(denoiser, t=levels.times[i], cond=cond)
            first, second = _turn(*_unmixed(x, self.mixing), last - i)
            second = move(levels, j, i, second, ask(first).eps)
            first = move(levels, j, i, first, ask(second).eps)
            x = join(*_turn(first, second, last - i))
            if self.pivots or i == last:
                states[i] = x
        first, second = halves(x.detach())
        gap, size = (each.flatten(1).abs().amax(1) for each in (first - second, first))
        if (gap > size).any():
            warnings.warn(
                f"EDICT's two states came apart over {last - entry} levels: use fewer, or a mixing weight nearer 1", stacklevel=2
            )
        report = {"gap": gap.tolist()}
        settings = settings_of(self) | {"dtype": dtype_name(x0)}
        return Trajectory(levels, last, states, {}, self.name, settings, 2 * (last - entry), report)


def way_back(trajectory: Trajectory) -> dict[str, Any]:
    """Return the step, query and output of `sample` that walk an EDICT trajectory back."""
    settings = trajectory.settings
    return {
        "step": partial(_step, mixing=settings["mixing"]),
        "query": partial(_ask_in_turn, start=trajectory.start),
        "output": first_as(settings["dtype"]),
    }


def _ask_in_turn(ask: Ask, levels: Levels, i: int, j: int, x: Tensor, *, start: int) -> Prediction:
    """Return the predictions of both states: one moves along that of the other, and that one along its own new place's."""
    first, second = _turn(*halves(x), start - i)
    for_first = ask(second)
    for_second = ask(move(levels, i, j, first, for_first.eps))
    return Prediction(
        x0=join(*_turn(for_first.x0, for_second.x0, start - i)),
        eps=join(*_turn(for_first.eps, for_second.eps, start - i)),
    )


def _step(
    levels: Levels, i: int, j: int, x: Tensor, pred: Prediction, history: History, noise: Tensor | None, *, mixing: float
) -> Tensor:
    x, y = halves(move(levels, i, j, x, pred.eps))
    x = torch.lerp(y, x, mixing)
    return join(x, torch.lerp(x, y, mixing))


def _unmixed(pair: Tensor, mixing: float) -> tuple[Tensor, Tensor]:
    x, y = halves(pair)
    y = (y - (1 - mixing) * x) / mixing
    return (x - (1 - mixing) * y) / mixing, y


def _turn(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the one that sampling step k moves first, then the other: they take turns. Undoes itself."""
    return (x, y) if k % 2 == 0 else (y, x)
