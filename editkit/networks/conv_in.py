"""Wider first convolutions: how a trained UNet comes to take further input channels."""

from __future__ import annotations

from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

Unet = TypeVar("Unet", UNet2DConditionModel, UNet2DModel)


def widen_conv_in(unet: Unet, channels: int) -> Unet:
    """Let a UNet take `channels` input channels; it starts out deaf to the new ones, and return it.

    The old weights and the bias are kept and the new weights are zero, so that the output stays the same whatever the new
    channels hold (InstructPix2Pix, arXiv 2211.09800, section 3.2; Paint by Example starts the same way).

    Raises:
        ValueError: fewer channels than it has.
    """
    old = unet.conv_in
    if channels < old.in_channels:
        raise ValueError(f"this UNet takes {old.in_channels} channels already, more than {channels}")
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=channels)
    return unet


def take_exemplars(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let an inpainting UNet take Paint by Example's channels, and return it: what it saw in its own, it sees in them.

    From [latents, mask with 1 = repaint, masked image's latents] to [latents, masked image's latents, mask with 1 = KEEP].
    It is exact but on the outermost pixels: the zeros around the picture said keep before and say repaint after.
    """
    conv: nn.Conv2d = unet.conv_in
    latent = (conv.in_channels - 1) // 2
    noisy, mask, masked = conv.weight.split([latent, 1, latent], dim=1)
    with torch.no_grad():
        conv.bias.add_(mask.sum((1, 2, 3)))
        conv.weight.copy_(torch.cat([noisy, masked, -mask], dim=1))
    return unet
