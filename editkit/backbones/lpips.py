"""LPIPS (Zhang et al., CVPR 2018, arXiv 1801.03924), version 0.1 with its learned channel weights, on three networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.features import FeatureNet, load_one_of

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Lpips(FeatureNet):
    """The stages of a classifier and one non-negative weight per channel; its folder is made by `editkit convert`.

    Attributes:
        widths: channels of the compared stages.
        stages: indices of the layers whose output is compared.
    """

    widths: ClassVar[tuple[int, ...]]
    stages: ClassVar[tuple[int, ...]]

    def __init__(self) -> None:
        super().__init__()
        # indices as in the published networks, so that their tensors load by name
        self.features = nn.Sequential(*self.layers())
        self.weights = nn.ParameterList(torch.ones(1, channels, 1, 1) for channels in self.widths)

    @staticmethod
    def layers() -> Sequence[nn.Module]:
        """Return the layers up to the last one that is compared."""
        raise NotImplementedError("a network of LPIPS says what its layers are")

    @classmethod
    def from_published(cls, network: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> Self:
        """Build from the network's state dict ("features.0.weight"...) and that of LPIPS v0.1 ("lin0.model.1.weight"...)."""
        net = cls()
        state = {name: network[name] for name in net.state_dict() if name.startswith("features.")}
        net.load_state_dict(state | {f"weights.{k}": linear[f"lin{k}.model.1.weight"] for k in range(len(cls.widths))})
        return net.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the compared features of images (B, 3, H, W) in [-1, 1], at least 64 pixels a side; values beyond are kept."""
        x = (images - images.new_tensor(_SHIFT)[:, None, None]) / images.new_tensor(_SCALE)[:, None, None]
        found = []
        for k, layer in enumerate(self.features):
            x = layer(x)
            if k in self.stages:
                found.append(x)
        return found

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Return the distance of each pair of feature lists, (B,): the sum over stages of weighted squared differences."""
        stages = zip(a, b, self.weights, strict=True)
        return sum(((_unit(f) - _unit(g)).square() * weight).sum(1).mean((1, 2)) for f, g, weight in stages)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair of images, (B,)."""
        return self.compare(self(a), self(b))


class LpipsAlex(Lpips):
    """On AlexNet's five convolutions."""

    kind = "lpips-alex"
    widths = (64, 192, 384, 256, 256)
    stages = (1, 4, 7, 9, 11)

    @staticmethod
    def layers() -> Sequence[nn.Module]:
        """Return AlexNet's layers."""
        return (
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )


class LpipsVgg(Lpips):
    """On VGG16, before each halving."""

    kind = "lpips-vgg"
    widths = (64, 128, 256, 512, 512)
    stages = (3, 8, 15, 22, 29)

    @staticmethod
    def layers() -> Sequence[nn.Module]:
        """Return VGG16's layers."""
        layers: list[nn.Module] = []
        width_in = 3
        for width, count in zip(LpipsVgg.widths, (2, 2, 3, 3, 3), strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(count):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU()]
                width_in = width
        return layers


class LpipsSqueeze(Lpips):
    """On SqueezeNet 1.1."""

    kind = "lpips-squeeze"
    widths = (64, 128, 256, 384, 384, 512, 512)
    stages = (1, 4, 7, 9, 10, 11, 12)

    @staticmethod
    def layers() -> Sequence[nn.Module]:
        """Return SqueezeNet's layers."""
        halve = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
        return (
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            halve(),
            _Fire(64, 16, 64),
            _Fire(128, 16, 64),
            halve(),
            _Fire(128, 32, 128),
            _Fire(256, 32, 128),
            halve(),
            _Fire(256, 48, 192),
            _Fire(384, 48, 192),
            _Fire(384, 64, 256),
            _Fire(512, 64, 256),
        )


class _Fire(nn.Module):
    """SqueezeNet's module: fewer channels, then twice as many from 1x1 and 3x3 convolutions side by side."""

    def __init__(self, width_in: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))


LPIPS = (LpipsAlex, LpipsVgg, LpipsSqueeze)


def load_lpips(path: str | Path) -> Lpips:
    """Load from a folder that `editkit convert` wrote."""
    return load_one_of(LPIPS, path)


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
