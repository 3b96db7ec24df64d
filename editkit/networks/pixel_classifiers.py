"""Classifiers of pixels from a diffusion network's features, many of them side by side (Baranchuk et al. 2022, section 4).

Each is Linear, ReLU, batch norm, twice, and Linear. On maps the first layer is applied before the maps are enlarged, which
gives the same numbers, since both are linear, and spares the wide maps at full size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_CLASSES = 30  # below it the hidden layers are narrower
STD = 0.02  # of the weights at the start


class PixelClassifiers(nn.Module):
    """Independent classifiers of one shape, trained together.

    Args:
        count: how many.
        width: features of a pixel.
        classes: parts that they tell apart.
    """

    def __init__(self, count: int, width: int, classes: int) -> None:
        super().__init__()
        self.count, self.classes = count, classes
        first, second = (128, 32) if classes < FEW_CLASSES else (256, 128)
        self.layers = nn.ModuleList(Stacked(count, a, b) for a, b in ((width, first), (first, second), (second, classes)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(count * hidden) for hidden in (first, second))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (M, N, K) of N pixels' features (M, N, D), own ones for each of the M classifiers."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            hidden = layer(x).relu()
            flat = norm(hidden.transpose(0, 1).flatten(1))  # statistics over pixels, by classifier and unit
            x = flat.unflatten(1, (self.count, -1)).transpose(0, 1)
        return self.layers[-1](x)

    def on_maps(self, member: int, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return the logits (B, K, H, W) of one classifier for all pixels of maps (B, C, h, w) of any sizes; evaluation mode."""
        x, first = torch.zeros((), device=maps[0].device), self.layers[0]
        parts = first.weight[member].split([part.shape[1] for part in maps], dim=0)
        for part, weight in zip(maps, parts, strict=True):
            small = torch.einsum("bchw,cd->bdhw", part.float(), weight)
            x = x + F.interpolate(small, tuple(size), mode="bilinear", align_corners=False)
        x = x.movedim(1, -1) + first.bias[member]
        for norm, layer in zip(self.norms, self.layers[1:], strict=True):
            x = self._normed(norm, member, x.relu()) @ layer.weight[member] + layer.bias[member]
        return x.movedim(-1, 1)

    def _normed(self, norm: nn.BatchNorm1d, member: int, x: Tensor) -> Tensor:
        own = slice(member * x.shape[-1], (member + 1) * x.shape[-1])
        scale = norm.weight[own] / (norm.running_var[own] + norm.eps).sqrt()
        return (x - norm.running_mean[own]) * scale + norm.bias[own]


class Stacked(nn.Module):
    """Linear layers of one shape, one for each entry of the leading axis."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(STD * torch.randn(count, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(count, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return (M, N, outputs) of (M, N, inputs)."""
        return torch.baddbmm(self.bias[:, None], x, self.weight)
