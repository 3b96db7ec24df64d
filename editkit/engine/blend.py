"""Masked sampling: outside the mask the state is the source's, at the level the state is at (arXiv 2111.14818, 2206.02779)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.engine.sample import Noise
from editkit.errors import UserError
from editkit.types import Levels, Prediction


@dataclass(frozen=True)
class MaskedSource:
    """An `on_step` that puts the source back outside the mask after each step i -> j, noised to level j.

    The source is clean at level 0. A mask of ones is plain sampling and one of zeros the source, both bit for bit.

    Attributes:
        levels: what is walked.
        source: what is diffused of the source images, (B, C, H, W).
        mask: (B, 1, H, W), 1 = edit here; at the size of `source` (see `latent_mask`).
        noise: level index -> noise of the source at that level, fresh for each (editkit.engine.rng.level_noise).
        pivots: states of an inversion of the source by level, which take the place of noised ones.

    Raises:
        ValueError: a mask of another size than the source, or neither noise nor pivots.
    """

    levels: Levels
    source: Tensor
    mask: Tensor
    noise: Noise | None = None
    pivots: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask.shape[-2:] != self.source.shape[-2:]:
            sizes = f"{tuple(self.mask.shape[-2:])} and {tuple(self.source.shape[-2:])}"
            raise ValueError(f"mask and source differ in size, {sizes}: bring the mask to it by latent_mask")
        if self.noise is None and not self.pivots:
            raise ValueError("the source at a level needs noise=, or pivots= from an inversion")

    def __call__(self, i: int, j: int, x: Tensor, pred: Prediction) -> Tensor:
        """Return the state x at level j, (B, C, H, W), with the source outside the mask."""
        return self.mask * x + (1 - self.mask) * self.at(j)

    def at(self, j: int) -> Tensor:
        """Return the source at level j, (B, C, H, W).

        Raises:
            ValueError: no pivot for the level, or no noise for it.
        """
        if j == 0:
            return self.source
        if self.pivots:
            if j not in self.pivots:
                raise ValueError(f"the inversion kept no state of level {j}, only of {sorted(self.pivots)}: ask for pivots=True")
            return self.pivots[j]
        drawn = None if self.noise is None else self.noise(j)
        if drawn is None:
            raise ValueError(f"no noise for the source at level {j}")
        return self.levels.signal(j) * self.source + self.levels.noise(j) * drawn


def latent_mask(mask: Tensor, size: tuple[int, int], dilate: int = 0) -> Tensor:
    """Return a mask (B, 1, H, W) at the size (h, w) of latents, 0 or 1: the nearest pixel, above one half.

    A mask averaged on the way (bilinear) would have soft edges, in which source and edit are mixed.

    Args:
        mask: 1 = edit here.
        size: of the latents.
        dilate: cells to add all around.

    Raises:
        UserError: a mask so thin that none of it is left.
    """
    hard = (F.interpolate(mask.float(), size, mode="nearest-exact") > 0.5).float()
    hard = F.max_pool2d(hard, 2 * dilate + 1, 1, dilate) if dilate else hard
    lost = (mask > 0.5).flatten(1).any(1) & ~hard.bool().flatten(1).any(1)
    if lost.any():
        cell = f"{mask.shape[-2] // size[0]} x {mask.shape[-1] // size[1]} pixels"
        raise UserError(f"the mask is lost between the latent's cells of {cell}: mark a larger part")
    return hard


def paste(source: Tensor, edited: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Return edited images (B, C, H, W) inside the mask (B, 1, H, W) and the source outside it, there bit for bit.

    For a photograph at full resolution there is `editkit.data.fit.Fit.paste`.

    Args:
        source: what stays.
        edited: what is put in.
        mask: 1 = edit here; above one half counts.
        feather: pixels over which the edit fades in, all of them inside the mask.
    """
    inside = mask > 0.5
    if not feather:
        return torch.where(inside, edited, source)
    padded = F.pad(inside.to(source.dtype), [feather] * 4, mode="replicate")
    share = (2 * F.avg_pool2d(padded, 2 * feather + 1, 1) - 1).clamp(0, 1)
    return torch.where(inside, torch.lerp(source, edited, share), source)
