"""The asymmetric denoiser: x0 from a shifted bottleneck, eps from the untouched one (Asyrp, arXiv 2210.10960, eq. 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.types import Condition, Prediction

Shift = Callable[[Tensor, float | Tensor], Tensor | None]


class Halved(Denoiser, Protocol):
    """A denoiser whose network can be stopped at the bottleneck."""

    def halves(
        self, x: Tensor, t: float | Tensor, cond: Condition | None = None
    ) -> tuple[Tensor, Callable[[Sequence[Tensor]], list[Prediction]]]:
        """Return the bottleneck h and `finish`, which runs the decoder for a list of h in one batch."""
        ...


@dataclass(frozen=True)
class Asymmetric(Wrapper):
    """A denoiser that predicts x0 from h + shift(h, t) and eps from h: one encoder pass, both decoder passes in a batch.

    Attributes:
        denoiser: the network.
        shift: (h (B, C', h, w), t) -> what to add to h, or None for a plain prediction with one decoder pass.
    """

    denoiser: Halved
    shift: Shift

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict; without a shift exactly what the network predicts."""
        h, finish = self.denoiser.halves(x, t, cond)
        shift = self.shift(h, t)
        if shift is None:
            return finish([h])[0]
        plain, edited = finish([h, h + shift])
        return replace(plain, x0=edited.x0)
