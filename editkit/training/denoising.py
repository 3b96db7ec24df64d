"""What the losses of latent methods are made of: posteriors of a batch, dropped conditions, the error of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.attention import trained_on_cpu
from editkit.backbones.base import Backbone
from editkit.backbones.latent import LatentBackbone
from editkit.errors import UsageError
from editkit.training.share import processes
from editkit.types import Condition, Prediction


def posteriors(backbone: LatentBackbone, batch: Mapping[str, Any], name: str) -> Tensor:
    """Return mean and log variance, unscaled, (B, 2, C, h, w), of a batch's pictures `name`, which may be encoded already."""
    encoded = batch.get(f"{name}_posterior")
    if encoded is not None:
        return encoded
    with torch.no_grad():
        return torch.stack(backbone.posterior(batch[name]), 1)


def drop_conditions(count: int, share: float = 0.05, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return which samples go without their text and which without their image, (B,) bool each.

    One uniform draw u a sample decides both: the text alone is dropped below `share`, text and image up to 2 shares, the
    image alone up to 3 (InstructPix2Pix, arXiv 2211.09800, section 3.2.1, and its code). Two independent draws would drop
    both for a share squared.
    """
    u = torch.rand(count, device=device)
    return u < 2 * share, (share <= u) & (u < 3 * share)


def stratified(count: int, device: torch.device) -> Tensor:
    """Return numbers in [0, 1), (count,), one in each of as many equal parts as the batch has samples over all processes.

    The samples come in a random order, so each one's distribution stays uniform, and the mean over the batch varies less.
    """
    rank, world = processes()
    return (rank * count + torch.arange(count, device=device) + torch.rand(count, device=device)) / (world * count)


def drawn_times(count: int, steps: int, device: torch.device, within: Sequence[float] = (0.0, 1.0)) -> Tensor:
    """Return `stratified` times (count,) of 0 to steps - 1, uniform between two shares of the noise scale, 1 = pure noise."""
    first, last = within
    return ((first + (last - first) * stratified(count, device)) * steps).long().clamp(max=steps - 1)


def denoising_error(
    backbone: Backbone,
    x0: Tensor,
    cond: Condition | None,
    *,
    times: Sequence[float] = (0.0, 1.0),
    weight: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error (B,) of a network's output, eps or v, at a random time for each sample.

    Args:
        backbone: the network, as it is being trained.
        x0: what is diffused, (B, C, h, w), scaled.
        cond: conditions of the samples.
        times: shares of the noise scale between which times are drawn, see `drawn_times`.
        weight: what each place counts, (B, 1, h, w); None: all the same.
    """
    t = drawn_times(len(x0), len(backbone.schedule), x0.device, times)
    noise = torch.randn_like(x0)
    with trained_on_cpu(backbone):
        guess = backbone(backbone.schedule.add_noise(x0, t, noise), t, cond)
    kind = backbone.parameterization
    output, target = (backbone.schedule.output(pred, t, kind) for pred in (guess, Prediction(x0, noise)))
    error = (output - target).square()
    return (error if weight is None else error * weight).mean((1, 2, 3))


def check_times(times: Sequence[float]) -> tuple[float, float]:
    """Return method.times as it is.

    Raises:
        UsageError: not two shares in order.
    """
    if len(times) != 2 or not 0 <= times[0] < times[1] <= 1:
        raise UsageError(f"method.times={list(times)} is out of range; give two shares of the noise scale, such as [0.3,1]")
    return times[0], times[1]


def mirrored(images: Tensor, share: float) -> Tensor:
    """Return images (B, 3, H, W), each mirrored with a probability."""
    chosen = torch.rand(len(images), device=images.device) < share
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def check_share(name: str, value: float) -> float:
    """Return method.NAME as it is.

    Raises:
        UsageError: it is no share.
    """
    if not 0 <= value <= 1:
        raise UsageError(f"method.{name}={value} is out of range; give a share of the images, 0 to 1")
    return value
