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


class Wrapper:
    """What a denoiser around another one takes over from it; a subclass has that one as `denoiser` and adds the call."""

    denoiser: Denoiser

    @property
    def schedule(self) -> Schedule:
        """Return the inner denoiser's schedule."""
        return self.denoiser.schedule

    @property
    def parameterization(self) -> str:
        """Return the inner denoiser's parameterization."""
        return self.denoiser.parameterization
