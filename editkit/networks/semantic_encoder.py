"""The semantic encoder of Diffusion Autoencoders (Preechakul et al., CVPR 2022, arXiv 2111.15640): an image becomes a vector.

The first half of a diffusion UNet that is told no time, and a mean over all places. Names of tensors are those of the
published checkpoints, but for the attention's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from editkit.networks.two_conditions import zero
from editkit.networks.v_diffusion import SelfAttention


class EncoderBlock(nn.Module):
    """One normalised convolution beside a way around it: without conditions the second convolution of a block is left out.

    Args:
        before, after: channels.
        groups: of channels that are normalised together.
        halved: the picture is halved before the convolution.
    """

    def __init__(self, before: int, after: int, groups: int, *, halved: bool = False) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.resize = nn.AvgPool2d(2) if halved else nn.Identity()
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        return self.skip_connection(self.resize(x)) + convolution(self.resize(activation(norm(x))))


class SemanticEncoder(nn.Module):
    """Returns z_sem, which nothing bounds or normalises.

    Args:
        channels: of each level, the largest pictures first.
        dim: of z_sem.
        size: side of the pictures that it was trained on.
        blocks: of a level.
        attended: sides of pictures at which attention follows every block.
        groups: of channels that are normalised together.
    """

    def __init__(
        self, channels: Sequence[int], dim: int, *, size: int, blocks: int = 2, attended: Sequence[int] = (16,), groups: int = 32
    ) -> None:
        super().__init__()
        self.groups = groups
        first = nn.Sequential(nn.Conv2d(3, channels[0], 3, padding=1))
        self.input_blocks = nn.ModuleList([first, *self._levels(channels, size, blocks, attended)])
        width = channels[-1]
        self.middle_block = nn.Sequential(*self._attended(width, width), EncoderBlock(width, width, groups))
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, dim, 1), nn.Flatten())
        self.out = nn.Sequential(nn.GroupNorm(groups, width), nn.SiLU(), *pooled)

    def forward(self, images: Tensor) -> Tensor:
        """Return z_sem (B, dim) of images (B, 3, H, W) in [-1, 1]."""
        hidden = images
        for block in self.input_blocks:
            hidden = block(hidden)
        return self.out(self.middle_block(hidden))

    def _levels(self, channels: Sequence[int], size: int, blocks: int, attended: Sequence[int]) -> Iterator[nn.Module]:
        before = channels[0]
        for level, width in enumerate(channels):
            for _ in range(blocks):
                attends = size >> level in attended
                yield nn.Sequential(*(self._attended(before, width) if attends else [EncoderBlock(before, width, self.groups)]))
                before = width
            if level + 1 < len(channels):
                yield nn.Sequential(EncoderBlock(width, width, self.groups, halved=True))

    def _attended(self, before: int, width: int) -> list[nn.Module]:
        attention = SelfAttention(width, 1, groups=self.groups)
        zero(attention.out_proj)
        return [EncoderBlock(before, width, self.groups), attention]
