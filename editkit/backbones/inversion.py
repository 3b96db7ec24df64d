"""Inversion of a backbone's images, from a cache of inversions where there is one."""

from __future__ import annotations

import functools

from torch import Tensor

from editkit.backbones.attention import constant_text
from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import PLAIN, Guidance, Guided
from editkit.engine.invert import DDIM, Inverter
from editkit.engine.trajectory import Trajectory
from editkit.types import Condition, Levels


class Inversion:
    """A backbone and how it is inverted; its weights are hashed once, at the first use of a cache, for they are frozen.

    Args:
        backbone: the network.
        inverter: deterministic, for no noise is handed to it; None = DDIM asked at the source level.
        guidance: of every query.
    """

    def __init__(self, backbone: Backbone, inverter: Inverter | None = None, guidance: Guidance = PLAIN) -> None:
        self.backbone, self.inverter = backbone, inverter or DDIM(query="source")
        self.denoiser: Denoiser = backbone if guidance is PLAIN else Guided(backbone, guidance)
        self.digest = functools.cache(backbone.digest)

    def __call__(
        self, x0: Tensor, levels: Levels, cache: InversionCache | None = None, cond: Condition | None = None
    ) -> Trajectory:
        """Return the trajectory of x0 (B, C, H, W), as `Backbone.encode` gives it, along the levels."""
        with constant_text(self.backbone):
            if cache is None:
                return self.inverter.invert(self.denoiser, x0, levels, cond)
            dtype = next(self.backbone.parameters()).dtype
            return cache.invert(self.inverter, self.denoiser, x0, levels, cond, weights=self.digest(), dtype=dtype)
