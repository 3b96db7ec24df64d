"""Wider first convolutions: how a text-to-image UNet comes to take further input channels."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn


def widen_conv_in(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
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
