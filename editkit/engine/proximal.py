"""Proximal guidance: small differences between the branches are noise, and edits stay near the inverted path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.engine.guidance import ClassifierFree, with_eps
from editkit.engine.sample import OnStep
from editkit.engine.schedule import Schedule
from editkit.engine.trajectory import Trajectory
from editkit.errors import UsageError
from editkit.types import Condition, Prediction


@dataclass(frozen=True)
class Proximal:
    """Classifier-free guidance along a thresholded difference, eps = u + scale prox(c - u) (arXiv 2306.05414).

    Where the threshold is passed by as much again, an edit is meant: `features["edited"]` holds that as 0 and 1, grown by a
    pixel, for `pull`. The threshold is each sample's own. An inner `rescale` goes by the spread of u + prox(c - u).

    Attributes:
        inner: the guidance, with its scale and unconditional branch.
        quantile: quantile of |c - u| below which differences go; 0 = keep all, 1 = the unconditional branch alone.
        threshold: a fixed one in its place.
        prox: "soft" moves all others towards 0 by the threshold, which the official code names l0; "hard" keeps them, which
            is what l0 means.

    Raises:
        UsageError: a quantile outside 0 to 1, or another prox.
    """

    inner: ClassifierFree
    quantile: float = 0.7
    threshold: float | None = None
    prox: str = "soft"

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise UsageError(f"the quantile of proximal guidance must lie between 0 and 1, got {self.quantile}")
        if self.prox not in ("soft", "hard"):
            raise UsageError(f"unknown prox {self.prox!r} of proximal guidance: choose from soft, hard")

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the inner guidance's branches."""
        return self.inner.branches(cond, t)

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the inner guidance's prediction from u and u + prox(c - u)."""
        if len(preds) == 1:
            return preds[0]
        c, u = preds
        difference = c.eps - u.eps
        tau = self._tau(difference)
        small = difference.clamp(-tau, tau) if self.prox == "soft" else difference * (difference.abs() <= tau)
        near = difference - small if self.threshold is not None or self.quantile > 0 else difference
        pred = self.inner.combine(x, t, [with_eps(c, u.eps + near, *schedule.coefficients(t, x)), u], schedule)
        edited = F.max_pool2d((near.abs() > tau).float(), 3, stride=1, padding=1)
        return replace(pred, features={**pred.features, "edited": edited})

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return False."""
        return False

    def _tau(self, difference: Tensor) -> Tensor:
        one_each = (-1, *[1] * (difference.ndim - 1))
        if self.threshold is not None:
            return difference.new_full((len(difference),), self.threshold).reshape(one_each)
        return torch.quantile(difference.detach().abs().flatten(1), self.quantile, dim=1).reshape(one_each)


def pull(trajectory: Trajectory, *, rate: float = 0.1, below: float = 400.0) -> OnStep:
    """Return an `on_step` that moves what is not edited towards the pivots (inversion guidance, arXiv 2306.05414).

    x += rate (pivot - x) (1 - edited) after each step from a time under `below`, with `edited` from `Proximal`.

    Raises:
        UsageError: a trajectory without pivots.
    """
    levels, pivots = trajectory.levels, trajectory.states
    if any(i not in pivots for i in range(levels.entry, trajectory.start)):
        raise UsageError("pulling towards the pivots needs all of them: invert with pivots=True")

    def after(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
        if levels.times[i] >= below or j not in pivots:
            return None
        return x + rate * (pivots[j] - x) * (1 - pred.features["edited"])

    return after
