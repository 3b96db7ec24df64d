"""Perceptual distance over a feature network's stages, with the reference's features computed once."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class FeatureStages(Protocol):
    """What the loss needs of a network: features per stage, and their distance per image."""

    def __call__(self, images: Tensor) -> list[Tensor]: ...

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor: ...


class Perceptual(nn.Module):
    """An LPIPS-like distance (Zhang et al. 2018); the network decides how stages are weighted.

    Args:
        net: the feature network, frozen.
    """

    def __init__(self, net: FeatureStages) -> None:
        super().__init__()
        self.net = net

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the features of reference images (B, 3, H, W) in [-1, 1], to be handed to `forward`."""
        return self.net(images)

    def forward(self, images: Tensor, reference_features: list[Tensor]) -> Tensor:
        """Return the distance of each image to its reference, (B,); images are not clamped."""
        return self.net.compare(self.net(images), reference_features)
