"""Classifier-free guidance by two conditions with a scale each: an image and an instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editkit.engine.guidance import check_rescale, rescaled, within
from editkit.engine.schedule import Schedule
from editkit.types import Condition, Prediction


@dataclass(frozen=True)
class DualClassifierFree:
    """eps = e(0,0) + image_scale (e(0,I) - e(0,0)) + text_scale (e(T,I) - e(0,I)), and x0 alike (arXiv 2211.09800, eq. 3).

    The condition of the call is (T,I). Of the three lanes, in the order (T,I), (0,I), (0,0), those of weight 0 are not
    queried: two equal scales make a plain classifier-free pair, both of them 1 the condition alone, and outside the
    interval it is alone too.

    Attributes:
        image_only: (0,I), the empty instruction, or a negative one, with the image.
        uncond: (0,0), the empty instruction with zero image latents.
        text_scale: s_T.
        image_scale: s_I.
        interval: (lowest, highest) time of guidance, None = all.
        rescale: pull each sample's std towards that of the first queried lane by this share, as in `ClassifierFree`.
        rescale_of: whose std, "eps" or "v".

    Raises:
        UsageError: another `rescale_of`.
    """

    image_only: Condition
    uncond: Condition
    text_scale: float = 7.5
    image_scale: float = 1.5
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    rescale_of: str = "eps"

    def __post_init__(self) -> None:
        check_rescale(self.rescale_of)

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the lanes that matter, in the order (T,I), (0,I), (0,0)."""
        lanes = (cond, self.image_only, self.uncond)
        return [lane for lane, weight in zip(lanes, self._weights(t), strict=True) if weight]

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the weighted sum of the lanes' predictions."""
        if len(preds) == 1:
            return preds[0]
        weights = [weight for weight in self._weights(t) if weight]
        x0, eps = (
            torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)
            for parts in ([pred.x0 for pred in preds], [pred.eps for pred in preds])
        )
        guided = replace(preds[0], x0=x0, eps=eps)
        return rescaled(guided, preds[0], self.rescale, self.rescale_of, lambda: schedule.coefficients(t, x))

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return False."""
        return False

    def _weights(self, t: float | Tensor) -> tuple[float, float, float]:
        if not within(self.interval, t):
            return 1.0, 0.0, 0.0
        return self.text_scale, self.image_scale - self.text_scale, 1 - self.image_scale
