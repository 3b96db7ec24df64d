"""The contract of everything that can be sampled from or inverted through."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from editkit.engine.schedule import Schedule
from editkit.types import Condition, Prediction


class Denoiser(Protocol):
    """A noise schedule and a callable (x, t, cond) -> Prediction; a wrapper around a denoiser is a denoiser again.

    Attributes:
        schedule: the schedule that it was trained with.
        parameterization: what its network outputs, "eps", "v" or "x0"; inverters choose their formula by it.
    """

    @property
    def schedule(self) -> Schedule: ...

    @property
    def parameterization(self) -> str: ...

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict from x (B, C, H, W) at model time t, a number or (B,)."""
        ...
