"""Negative-prompt inversion: the source prompt itself as the unconditional branch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.lanes import stack
from editkit.engine.ode import DDIM
from editkit.engine.pivotal import settings_of as guidance_of
from editkit.engine.pivotal import unguided
from editkit.engine.sample import Noise
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.errors import UsageError
from editkit.types import Condition, Levels


@dataclass(frozen=True)
class NegativePrompt:
    """Negative-prompt inversion (arXiv 2305.16807) of `Guided(denoiser, ClassifierFree(scale, uncond))`.

    Under the source prompt guidance then says nothing at any scale, and the way back is that of `DDIM("target")`; under a
    target prompt it points from the source to the target. `Proximal` and `pull` (editkit.engine.proximal) keep an edit closer.

    Attributes:
        interpolation: share of the given unconditional tokens that is mixed in, 0 to 1.
        pivots: keep the states of all levels, not only the first and the last.

    Raises:
        UsageError: a share outside 0 to 1.
    """

    name: ClassVar[str] = "negative-prompt"
    interpolation: float = 0.0
    pivots: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.interpolation <= 1:
            raise UsageError(f"interpolation {self.interpolation} of negative-prompt inversion is outside 0 to 1")

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level under the source condition alone.

        Raises:
            UsageError: a denoiser without classifier-free guidance, or without text.
        """
        inner, guidance, cond = unguided(self.name, denoiser, cond)
        path = DDIM("target", self.pivots).invert(inner, x0, levels, cond)
        negative, uncond = stack([cond], [len(x0)]), guidance.uncond
        assert negative is not None and negative.tokens is not None
        assert isinstance(uncond, Condition) and uncond.tokens is not None
        if self.interpolation:
            negative = replace(negative, tokens=torch.lerp(negative.tokens, uncond.tokens, self.interpolation))
        settings = settings_of(self) | guidance_of(guidance)
        return replace(path, inverter=self.name, settings=settings, conds={path.start: negative})
