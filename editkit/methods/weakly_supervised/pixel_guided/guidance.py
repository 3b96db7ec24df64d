"""Guidance of each sampling step by the classifier of its noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.engine.guidance import PLAIN, Guidance, with_eps
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddpm_deviation
from editkit.types import Condition, Levels, Prediction

SAMPLERS = ("ddpm", "ddim")
Classify = Callable[[float], Tensor]


@dataclass(frozen=True)
class PixelGuidance:
    """Descend the cross entropy of the changed map, averaged over the pixels of its region, in the state x_t.

    One pass of the network gives the prediction, the features and, backwards, the slope. With "ddpm" the mean of the step moves
    by -scale Sigma slope, Sigma the step's own variance; with "ddim" eps moves by scale sqrt(1 - alpha_bar) slope, and what
    follows of x0 is not clipped again.

    Attributes:
        classify: time -> logits (B, K, H, W) from the features of the last pass.
        wanted: the changed maps, (B, H, W) int64.
        region: (B, 1, H, W), 1 where the map counts; a sample without any is not guided.
        levels: what is walked down.
        scale: strength, (B,).
        sampler: whose step follows, "ddpm" or "ddim".
        inner: guidance applied before, such as `Clip`.
    """

    classify: Classify
    wanted: Tensor
    region: Tensor
    levels: Levels
    scale: Tensor
    sampler: str = "ddpm"
    inner: Guidance = PLAIN

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the inner guidance's branches."""
        return self.inner.branches(cond, t)

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return whether there is anything to follow."""
        return bool((self.scale != 0).any() and self.region.any())

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the prediction with its mean, or its eps, moved."""
        pred = self.inner.combine(x, t, preds, schedule)
        if not self.needs_grad(t):
            return pred
        with torch.enable_grad():
            error = self.error(float(t))
            slope = torch.autograd.grad(error.sum(), x)[0]
        i = self.levels.times.index(float(t))
        scale = self.scale.to(slope).view(-1, 1, 1, 1)
        if self.sampler == "ddim":
            a, s = self.levels.signal(i), self.levels.noise(i)
            return with_eps(pred, pred.eps + scale * s * slope, a, s)
        return replace(pred, mean_shift=-scale * ddpm_deviation(self.levels, i, i - 1, pred) ** 2 * slope)

    def error(self, t: float) -> Tensor:
        """Return the mean cross entropy over each sample's region, (B,); 0 where that is empty."""
        inside = self.region[:, 0]
        error = F.cross_entropy(self.classify(t).float(), self.wanted, reduction="none")
        return (error * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
