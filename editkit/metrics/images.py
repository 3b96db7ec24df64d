"""How close a picture is to the rendered truth, over the whole frame or over one region of it.

A region is a mask (B, 1, H, W) of 0 and 1. Errors are averaged over its pixels alone, so its size does not flatter the
figure. Where it is empty nothing can be measured: the result is nan, which `mean` leaves out and counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia.metrics import ssim as ssim_map
from torch import Tensor

PSNR_CAP = 60.0  # dB; 8-bit rounding alone makes 59, so more says nothing about a saved picture


@dataclass(frozen=True)
class Mean:
    """A mean, over how many images, and how many were left out because the figure is undefined for them."""

    value: float
    count: int
    excluded: int


def mean(values: Tensor) -> Mean:
    """Return the mean of the defined values (B,); nan if there are none."""
    defined = values[~values.isnan()]
    value = defined.double().mean().item() if len(defined) else float("nan")
    return Mean(value, len(defined), len(values) - len(defined))


def eight_bit(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as a saved PNG would hold them: clamped, and rounded to 256 levels."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Return the mask (B, 1, H, W) of the pixels in which 8-bit images a and b differ at all."""
    return ((a - b).abs().amax(1, keepdim=True) > 0.5 / 127.5).float()


def psnr(images: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the peak signal-to-noise ratio (B,) in dB, at most `PSNR_CAP` (which equal pictures get).

    Args:
        images, truth: (B, 3, H, W) in [-1, 1].
        region: mask (B, 1, H, W) to average over; None is the whole frame.
    """
    squared = ((images.float() - truth.float()) / 2).square().mean(1, keepdim=True)
    error = _over(squared, region)
    return -10 * error.clamp_min(10 ** (-PSNR_CAP / 10)).log10()


def ssim(images: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    """Return the structural similarity (B,), at most 1: 11x11 Gaussian window of sigma 1.5 (Wang et al. 2004).

    Its map is made from whole pictures and then averaged over the region, so windows look a little beyond its border.
    """
    similarity = ssim_map((images.float() + 1) / 2, (truth.float() + 1) / 2, window_size=11, max_val=1.0)
    return _over(similarity.mean(1, keepdim=True), region)


def perceptual(
    distance: Callable[[Tensor, Tensor], Tensor], images: Tensor, truth: Tensor, region: Tensor | None = None
) -> Tensor:
    """Return a perceptual distance (B,), 0 for equal pictures.

    Over a region the rest of the picture is replaced by the truth, which leaves no artificial edge to measure.

    Args:
        distance: takes two batches (B, 3, H, W) in [-1, 1] and returns (B,), e.g. `PerceptualNet.distance`.
        images, truth: as for `psnr`.
        region: as for `psnr`.
    """
    if region is None:
        return distance(images, truth)
    measured = distance(torch.where(region > 0, images, truth), truth)
    return torch.where(region.flatten(1).sum(1) > 0, measured, torch.nan)


def _over(values: Tensor, region: Tensor | None) -> Tensor:
    """Average a map (B, 1, H, W) over its region; nan where the region is empty."""
    if region is None:
        return values.mean((1, 2, 3))
    return (values * region).sum((1, 2, 3)) / region.sum((1, 2, 3))
