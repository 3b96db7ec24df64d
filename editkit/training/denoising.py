"""What the losses of latent methods are made of: posteriors of a batch, dropped conditions, the error of a denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.attention import trained_on_cpu
from editkit.backbones.base import Backbone
from editkit.backbones.latent import LatentBackbone
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


def denoising_error(backbone: Backbone, x0: Tensor, cond: Condition | None) -> Tensor:
    """Return the mean squared error (B,) of a network's output, eps or v, at a random time for each sample.

    Times are uniform and `stratified`.

    Args:
        backbone: the network, as it is being trained.
        x0: what is diffused, (B, C, h, w), scaled.
        cond: conditions of the samples.
    """
    steps = len(backbone.schedule)
    t = (stratified(len(x0), x0.device) * steps).long().clamp(max=steps - 1)
    noise = torch.randn_like(x0)
    with trained_on_cpu(backbone):
        guess = backbone(backbone.schedule.add_noise(x0, t, noise), t, cond)
    kind = backbone.parameterization
    output, target = (backbone.schedule.output(pred, t, kind) for pred in (guess, Prediction(x0, noise)))
    return (output - target).square().mean((1, 2, 3))
