"""Inversion that solves the sampling ODE upwards: naive DDIM inversion, its fixed-point refinement, linear multistep."""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.lanes import select
from editkit.engine.multistep import adams_bashforth
from editkit.engine.sample import Noise
from editkit.engine.steps import ddim, move
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.errors import UsageError
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class DDIM:
    """Naive DDIM inversion (arXiv 2010.02502, section 4.3): one query a level, an error of about 1/N on the way back.

    Attributes:
        query: time at which the network sees the lower state: "source", its own (the pixel methods' code), or "target",
            the level it goes to (null-text inversion, diffusers), which is the first iterate of `FixedPoint`. The clean
            end has no model time of its own, so a first move from there always asks at the target.
        pivots: keep the states of all levels, not only the first and the last.

    Raises:
        UsageError: another query.
    """

    name: ClassVar[str] = "ddim"
    query: str = "source"
    pivots: bool = False

    def __post_init__(self) -> None:
        if self.query not in ("source", "target"):
            raise UsageError(f"unknown query {self.query!r} of DDIM inversion: choose from source, target")

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level."""
        x, last = x0, len(levels) - 1
        states = {levels.entry: x0}
        for i in range(levels.entry, last):
            if self.query == "target" or levels.times[i] < 0:
                x = implicit_move(denoiser, x, x, levels, i, cond)
            else:
                x = ddim(levels, i, i + 1, x, denoiser(x, levels.times[i], cond), (), None)
            if self.pivots or i + 1 == last:
                states[i + 1] = x
        return Trajectory(levels, last, states, inverter=self.name, settings=settings_of(self), calls=last - levels.entry)


@dataclass(frozen=True)
class PLMS:
    """Inversion by pseudo linear multistep: the way up by the rule of `multistep.plms`, one query a level.

    It starts with DDIM and takes one more eps into the mean at each of the next three moves (iPLMS, arXiv 2204.13902, as
    v-diffusion inverts with it). The clean end is left as in `DDIM`.

    Attributes:
        pivots: keep the states of all levels, not only the first and the last.
    """

    name: ClassVar[str] = "plms"
    pivots: bool = False

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level."""
        x, last = x0, len(levels) - 1
        states, earlier = {levels.entry: x0}, deque[Prediction](maxlen=3)
        for i in range(levels.entry, last):
            if levels.times[i] < 0:
                x = implicit_move(denoiser, x, x, levels, i, cond)
            else:
                pred = denoiser(x, levels.times[i], cond)
                x = adams_bashforth(levels, i, i + 1, pred, earlier)
                earlier.appendleft(pred)
            if self.pivots or i + 1 == last:
                states[i + 1] = x
        return Trajectory(levels, last, states, inverter=self.name, settings=settings_of(self), calls=last - levels.entry)


@dataclass(frozen=True)
class FixedPoint:
    """DDIM inversion that solves each implicit step x_j = A x_i + B eps(x_j, t_j) by iteration (AIDI, arXiv 2309.04907).

    Each refinement shrinks the error by about |B| Lip(eps), so the way back ends at the floor of the dtype. Every sample
    stops by itself: its result does not depend on the batch.

    Attributes:
        refinements: iterations after the first, which alone is `DDIM("target")`.
        tolerance: a sample stops when max|change| < tolerance max|x|; 0 never stops early.
        pivots: keep the states of all levels, not only the first and the last.
        compact: leave finished samples out of the call once half of them are done. Changes the batch shape, hence bits.

    `report` gives per sample: "residual" (largest last change over the levels, relative), "diverged" (levels where the
    change grew twice, which keep their best iterate) and "evaluations" (queries).
    """

    name: ClassVar[str] = "fixed-point"
    refinements: int = 3
    tolerance: float = 1e-5
    pivots: bool = False
    compact: bool = True

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level."""
        x, last, calls = x0, len(levels) - 1, 0
        states = {levels.entry: x0}
        residual, diverged, evaluations = (torch.zeros(len(x0), dtype=torch.float64) for _ in range(3))
        for i in range(levels.entry, last):
            solve = _Solve(x, self.tolerance)
            for _ in range(self.refinements + 1):
                rows = solve.rows
                part = cond if len(rows) == len(x) else select(cond, rows)
                solve.update(implicit_move(denoiser, x[rows], solve.y[rows], levels, i, part), self.compact)
                calls += 1
                if not solve.active.any():
                    break
            x = solve.result()
            residual = residual.maximum(solve.residual)
            diverged, evaluations = diverged + solve.diverged, evaluations + solve.evaluations
            if self.pivots or i + 1 == last:
                states[i + 1] = x
        if diverged.any():
            bad = diverged.nonzero().flatten().tolist()
            warnings.warn(f"fixed-point inversion diverged for samples {bad}: use more steps or less guidance", stacklevel=2)
        report = {"residual": residual.tolist(), "diverged": diverged.tolist(), "evaluations": evaluations.tolist()}
        return Trajectory(levels, last, states, {}, self.name, settings_of(self), calls, report)


def implicit_move(denoiser: Denoiser, x: Tensor, y: Tensor, levels: Levels, i: int, cond: Condition | None) -> Tensor:
    """Return f(y), whose fixed point is the state at level i+1 from which a DDIM step lands on x at level i.

    The network is asked at (y, t_{i+1}).
    """
    return move_up(denoiser.parameterization, levels, i, x, denoiser(y, levels.times[i + 1], cond))


def move_up(parameterization: str, levels: Levels, i: int, x: Tensor, pred: Prediction) -> Tensor:
    """Return x moved from level i to i+1 along a prediction made at level i+1.

    For eps: A x + B eps. For v, with d the angle between the levels, (x + sin(d) v) / cos(d): finite at both ends of the
    schedule, where the form in eps is not.
    """
    j = i + 1
    if parameterization != "v":
        return move(levels, i, j, x, pred.eps)
    a, s = levels.signal(j), levels.noise(j)
    sine = s * levels.signal(i) - a * levels.noise(i)
    cosine = a * levels.signal(i) + s * levels.noise(i)
    return (x + sine * (a * pred.eps - s * pred.x0)) / cosine


class _Solve:
    """The iterates of one level, with a stopping rule per sample; its books are on the CPU."""

    def __init__(self, x: Tensor, tolerance: float) -> None:
        self.y = self.best = x
        self.tolerance = tolerance
        self.rows = torch.arange(len(x))
        self.active = torch.ones(len(x), dtype=torch.bool)
        self.residual = torch.full((len(x),), math.inf, dtype=torch.float64)
        self.least = self.residual.clone()
        self.grown, self.evaluations = torch.zeros(len(x)), torch.zeros(len(x))

    def update(self, new: Tensor, compact: bool) -> None:
        """Take f(y) of `rows`; samples that are done keep their y."""
        rows = self.rows
        old = self.y[rows]
        change = (_size(new - old) / _size(new)).detach().double().cpu()
        going = self.active[rows]
        self.y = self.y.index_copy(0, rows.to(new.device), torch.where(_column(going, new), new, old))
        last = self.residual[rows]
        floor = 100 * torch.finfo(new.dtype).eps  # below it changes are rounding, and grow and shrink by chance
        self.grown[rows] += going & ~(change <= last.clamp(min=floor))  # written so that NaN counts as growth
        self.evaluations[rows] += going
        better = going & (change < self.least[rows])
        self.best = self.best.index_copy(0, rows.to(new.device), torch.where(_column(better, new), new, self.best[rows]))
        self.least[rows] = torch.where(better, change, self.least[rows])
        self.residual[rows] = torch.where(going, change, last)
        self.active[rows] = going & ~(change < self.tolerance) & (self.grown[rows] < 2)
        left = self.active.nonzero().flatten()
        if compact and 0 < 2 * len(left) <= len(rows):
            self.rows = left

    @property
    def diverged(self) -> Tensor:
        """Return which samples' change grew twice."""
        return self.grown >= 2

    def result(self) -> Tensor:
        """Return the last iterates, and the best ones of diverged samples."""
        return torch.where(_column(self.diverged, self.y), self.best, self.y)


def _size(x: Tensor) -> Tensor:
    return x.flatten(1).abs().amax(1)


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.to(like.device).reshape(-1, *[1] * (like.ndim - 1))
