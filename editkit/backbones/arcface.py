"""ArcFace's IR-SE50 (Deng et al., CVPR 2019, arXiv 1801.07698), the face embedding that identity losses are published with."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.features import FeatureNet

SIDE, CROP, INPUT = 256, (slice(35, 223), slice(32, 220)), 112  # the face in an FFHQ-aligned picture, and what it becomes


class ArcFace(FeatureNet):
    """A residual network with squeeze-and-excitation; one person's pictures lie close whatever the expression.

    Its layers have the names of the published file, so that its tensors load by name.

    Args:
        channels: width of each stage; every stage halves the picture.
        blocks: units of each stage.
        dim: size of the embedding.
    """

    kind = "arcface"

    def __init__(
        self, channels: Sequence[int] = (64, 128, 256, 512), blocks: Sequence[int] = (3, 4, 14, 3), dim: int = 512
    ) -> None:
        super().__init__(channels=list(channels), blocks=list(blocks), dim=dim)
        first, last, side = channels[0], channels[-1], INPUT // 2 ** len(channels)
        self.input_layer = nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first))
        units: list[nn.Module] = []
        width_in = first
        for width, count in zip(channels, blocks, strict=True):
            for index in range(count):
                units.append(_Unit(width_in, width, stride=2 if index == 0 else 1))
                width_in = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last), nn.Dropout(0.6), nn.Flatten(), nn.Linear(last * side * side, dim), nn.BatchNorm1d(dim)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, dim) of FFHQ-aligned faces (B, 3, H, W) in [-1, 1].

        As DiffusionCLIP does it: rows 35 to 223 and columns 32 to 220 of 256 pixels, averaged down to 112. Pictures of
        another size are resized to 256 first.
        """
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True)
        return F.normalize(self.embed(F.adaptive_avg_pool2d(images[..., CROP[0], CROP[1]], INPUT)), dim=1)

    def embed(self, faces: Tensor) -> Tensor:
        """Return the embeddings, not yet of unit length, of cropped faces (B, 3, 112, 112)."""
        return self.output_layer(self.body(self.input_layer(faces)))


class _Unit(nn.Module):
    """Norm, convolution, PReLU, strided convolution, norm, squeeze-and-excitation; the shortcut is strided alike."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if width_in == width
            else nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            _Squeeze(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


class _Squeeze(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018): every channel scaled by what all of them are on average."""

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(width // reduction, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


def load_arcface(path: str) -> ArcFace:
    """Load from a folder that `editkit convert` wrote."""
    return ArcFace.load(path)
