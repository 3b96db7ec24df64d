"""Identity embeddings of faces: the embedded world's own network, and whichever a folder holds."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.arcface import ArcFace
from editkit.backbones.features import FeatureNet, load_one_of


class IdentityNet(FeatureNet):
    """A residual network that embeds a face so that one person's images lie close whatever the expression.

    Args:
        channels: width of each stage; every stage halves the image.
        dim: size of the embedding.
        image_size: the size it was trained at; other images are resized to it.
    """

    kind = "identity"

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96), dim: int = 128, image_size: int = 64) -> None:
        super().__init__(channels=list(channels), dim=dim, image_size=image_size)
        widths = (3, *channels)
        self.image_size = image_size
        self.stages = nn.ModuleList(_Halve(width_in, width) for width_in, width in itertools.pairwise(widths))
        side = image_size // 2 ** (len(channels) + 1)
        self.head = nn.Linear(channels[-1] * side * side, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, dim) of images (B, 3, H, W) in [-1, 1]."""
        x = images
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, size=(self.image_size, self.image_size), mode="bicubic", antialias=True)
        for stage in self.stages:
            x = stage(x)
        return F.normalize(self.head(F.avg_pool2d(x, 2).flatten(1)), dim=1)


class _Halve(nn.Module):
    """A strided convolution followed by one residual block."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def load_identity(path: str | Path = "editkit:toy-identity") -> FeatureNet:
    """Load an identity network, the toy world's or ArcFace's, from a folder or a bundled name."""
    return load_one_of((IdentityNet, ArcFace), path)
