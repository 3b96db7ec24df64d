"""Keeping the person: the cosine distance of identity embeddings."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Identity(nn.Module):
    """1 - cos between identity embeddings.

    Args:
        net: images (B, 3, H, W) in [-1, 1] -> unit embeddings (B, D), frozen.
    """

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def features(self, images: Tensor) -> Tensor:
        """Return the embeddings of source images, to be computed once and handed to `forward`."""
        return self.net(images)

    def forward(self, images: Tensor, source_features: Tensor) -> Tensor:
        """Return the distance of each image to its source, (B,), between 0 and 2."""
        return 1 - (self.net(images) * source_features).sum(-1)
