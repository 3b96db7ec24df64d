"""Pictures a little spoiled, as edited ones may be: what networks that judge must bear."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8  # pixels a side of a block of JPEG


def disturbed(images: Tensor) -> Tensor:
    """Blur, add noise and shift colours, each on some of the images (B, 3, H, W) in [-1, 1]."""
    count, device = len(images), images.device
    some = lambda chance: (torch.rand(count, 1, 1, 1, device=device) < chance).float()  # noqa: E731
    amount = torch.rand(count, 1, 1, 1, device=device)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, soft, 0.8 * amount * some(0.3))
    images = images + torch.randn_like(images) * torch.rand(count, 1, 1, 1, device=device) * 0.12 * some(0.5)
    return (images + (torch.rand(count, 3, 1, 1, device=device) - 0.5) * 0.06 * some(0.3)).clamp(-1, 1)


def mirrored(images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the images (B, 3, H, W), each with what is known of its pixels (B, ..., H, W)."""
    flip = torch.rand(len(images), device=images.device) < 0.5
    images, maps = (torch.where(flip.view(-1, *[1] * (part.ndim - 1)), part.flip(-1), part) for part in (images, maps))
    return images, maps


def compressed(images: Tensor, coarseness: Tensor) -> Tensor:
    """Return images (B, 3, H, W) as JPEG's rounding leaves them: the cosine transform of blocks of 8 x 8 pixels, in coarse steps.

    Steps grow with the frequency, as in JPEG's own tables; colours are rounded like brightness, which JPEG does more coarsely.

    Args:
        images: in [-1, 1], sides multiples of 8.
        coarseness: (B,) step of the lowest frequency, in units of the images; 0.05 is slight, 0.3 heavy.
    """
    height, width = images.shape[-2:]
    basis = _cosines(images)
    blocks = images.unflatten(3, (width // BLOCK, BLOCK)).unflatten(2, (height // BLOCK, BLOCK)).transpose(3, 4)
    frequencies = torch.arange(BLOCK, device=images.device)
    steps = coarseness.view(-1, 1, 1, 1, 1, 1) * (1 + (frequencies[:, None] + frequencies[None, :]) / 2)
    coefficients = basis @ blocks @ basis.T
    rounded = (coefficients / steps).round() * steps
    return (basis.T @ rounded @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3).clamp(-1, 1)


def _cosines(like: Tensor) -> Tensor:
    """Return the orthonormal cosine transform of 8 values, (8, 8)."""
    k = torch.arange(BLOCK, device=like.device, dtype=torch.float32)
    waves = torch.cos(math.pi * k[:, None] * (2 * k[None, :] + 1) / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    return waves.to(like.dtype)
