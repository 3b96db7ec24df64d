"""The encoder of Hierarchical Diffusion Autoencoders (Lu et al., WACV 2024, arXiv 2304.11829): a code for each resolution.

No code was published; shapes and blocks are ours, after the encoder of Diffusion Autoencoders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.networks.semantic_encoder import EncoderBlock, SemanticEncoder

VARIANTS = ("E", "U")


class LevelEncoder(SemanticEncoder):
    """Returns one code per level, side by side, the most abstract first: (B, levels dim). Nothing spatial leaves it.

    Args:
        channels, dim, size, blocks, attended, groups: as of `SemanticEncoder`; `channels` may go deeper than the levels.
        levels: how many codes, of the sides size, size / 2...
        variant: "E" takes codes off the way down; "U" off a way up again, so that fine codes see abstract features too.
        warm: the most abstract code stays that of `SemanticEncoder`, read off its middle, in either variant.
    """

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        *,
        levels: int,
        size: int,
        blocks: int = 2,
        attended: Sequence[int] = (16,),
        groups: int = 32,
        variant: str = "U",
        warm: bool = False,
    ) -> None:
        super().__init__(channels, dim, size=size, blocks=blocks, attended=attended, groups=groups)
        self.ends = [
            (blocks + 1) * (level + 1) - 1 for level in range(levels)
        ]  # the last block of each level, before it is halved
        self.above = variant == "E" or warm  # the first code is read off the middle
        below = [channels[-1], *reversed(channels[1:levels])]  # what comes up to each level, the smallest first
        own = list(reversed(channels[:levels]))
        if variant == "U":
            ways = zip(below, own, strict=True)
            self.up = nn.ModuleList(EncoderBlock(under + here, here, groups) for under, here in ways)
        else:
            self.up = nn.ModuleList()
        if not self.above:
            self.out = head(own[0], dim, groups)
        self.heads = nn.ModuleList(head(width, dim, groups) for width in own[1:])

    def forward(self, images: Tensor) -> Tensor:
        """Return the codes (B, levels dim) of images (B, 3, H, W) in [-1, 1]."""
        features, hidden = [], images
        for n, block in enumerate(self.input_blocks):
            hidden = block(hidden)
            if n in self.ends:
                features.insert(0, hidden)
        middle = self.middle_block(hidden)
        if len(self.up):
            hidden = middle
            for n, (block, feature) in enumerate(zip(self.up, features, strict=True)):
                hidden = block(torch.cat([F.interpolate(hidden, feature.shape[2:], mode="nearest"), feature], 1))
                features[n] = hidden
        first = self.out(middle if self.above else features[0])
        return torch.cat([first, *(read(feature) for read, feature in zip(self.heads, features[1:], strict=True))], 1)


def head(width: int, dim: int, groups: int) -> nn.Sequential:
    """Return what reads a code (B, dim) off features (B, width, h, w): a mean over all places, as published."""
    return nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, dim, 1), nn.Flatten())
