"""Losses of guided sampling towards a text: spherical distance of embeddings, roughness, square crops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 arcsin(|a - b| / 2)^2 of unit vectors (..., D): half the squared angle between them."""
    chord = ((a - b).square().sum(-1) + 1e-14).sqrt()  # the guard sits inside the root, for the slope of equal ones
    return 2 * torch.arcsin((chord / 2).clamp(max=1 - 1e-6)) ** 2


def roughness(images: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours to the right and below (B, C, H, W) -> (B,), borders repeated."""
    padded = F.pad(images, (0, 1, 0, 1), "replicate")
    right, below = padded[..., :-1, 1:] - images, padded[..., 1:, :-1] - images
    return (right.square() + below.square()).mean((1, 2, 3))


def square_crop(image: Tensor, least: int, generator: torch.Generator) -> Tensor:
    """Return a random square of an image (C, H, W), reduced to `least` pixels, (C, least, least).

    Its side is uniform between `least` and the image's shorter side, its place uniform within the image.
    """
    height, width = image.shape[1:]
    share, down, right = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    side = int(share * (min(height, width) - least) + least)
    top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
    return F.adaptive_avg_pool2d(image[:, top : top + side, left : left + side], least)
