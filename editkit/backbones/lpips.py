"""LPIPS with AlexNet features (Zhang et al., CVPR 2018, arXiv 1801.03924), version 0.1 with its learned channel weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from editkit.backbones.features import FeatureNet

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_TAPS = (1, 4, 7, 9, 11)  # the rectifiers whose output is compared


class LpipsAlex(FeatureNet):
    """AlexNet's five convolution stages and one non-negative weight per channel; its folder is made by `from_published`."""

    kind = "lpips-alex"

    def __init__(self) -> None:
        super().__init__()
        # indices as in the published AlexNet, so that its tensors load by name
        self.features = nn.Sequential(
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
        self.weights = nn.ParameterList(torch.ones(1, channels, 1, 1) for channels in (64, 192, 384, 256, 256))

    @classmethod
    def from_published(cls, alexnet: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> LpipsAlex:
        """Build from AlexNet's state dict ("features.0.weight"...) and that of LPIPS v0.1 ("lin0.model.1.weight"...)."""
        net = cls()
        state = {name: alexnet[name] for name in net.state_dict() if name.startswith("features.")}
        net.load_state_dict(state | {f"weights.{k}": linear[f"lin{k}.model.1.weight"] for k in range(len(_TAPS))})
        return net.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the five features of images (B, 3, H, W) in [-1, 1], at least 64 pixels a side; values beyond are kept."""
        x = (images - images.new_tensor(_SHIFT)[:, None, None]) / images.new_tensor(_SCALE)[:, None, None]
        found = []
        for k, layer in enumerate(self.features):
            x = layer(x)
            if k in _TAPS:
                found.append(x)
        return found

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Return the distance of each pair of feature lists, (B,): the sum over stages of weighted squared differences."""
        stages = zip(a, b, self.weights, strict=True)
        return sum(((_unit(f) - _unit(g)).square() * weight).sum(1).mean((1, 2)) for f, g, weight in stages)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair of images, (B,)."""
        return self.compare(self(a), self(b))


def load_lpips(path: str | Path) -> LpipsAlex:
    """Load from a folder that `LpipsAlex.save` wrote."""
    return LpipsAlex.load(path)


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
