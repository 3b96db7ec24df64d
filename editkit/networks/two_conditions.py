"""Residual blocks that a second vector scales after the time has (Diffusion Autoencoders, arXiv 2111.15640).

AdaGN(h, t, z) = (1 + z_s) ((1 + t_s) GroupNorm(h) + t_b): the time comes first, so that z scales its shift too.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


class TwoConditions(nn.Module):
    """Both conditions as one scale and shift, which diffusers' blocks apply as h (1 + scale) + shift.

    Args:
        time_width: of the time's embedding.
        code_width: of the second vector.
        channels: of the block.

    Attributes:
        place: which of the second vectors that lie side by side it reads; 0 is the only one unless there are several.
    """

    place = 0

    def __init__(self, time_width: int, code_width: int, channels: int) -> None:
        super().__init__()
        self.time = nn.Linear(time_width, 2 * channels)
        self.code = nn.Linear(code_width, channels)

    def forward(self, both: Tensor) -> Tensor:
        """Return scale and shift (B, 2 channels) of time and second vectors side by side, (B, time_width + n code_width)."""
        width = self.code.in_features
        first = self.time.in_features + self.place * width
        time, code = both[:, : self.time.in_features], both[:, first : first + width]
        scale, shift = self.time(time.contiguous()).chunk(2, 1)  # how a product rounds depends on what lies between the rows
        code = self.code(code.contiguous())
        return torch.cat([scale + (1 + scale) * code, shift + shift * code], 1)


def add_second_condition(unet: UNet2DModel, width: int) -> UNet2DModel:
    """Let a second vector scale every block of a UNet that scales and shifts by the time.

    Its blocks then take both vectors side by side in place of the time's embedding. New weights start as published: the last
    convolution of each block, of each attention and of the network at zero.
    """
    for block in [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]:
        time = block.time_emb_proj
        block.time_emb_proj = TwoConditions(time.in_features, width, time.out_features // 2)
        zero(block.conv2)
    for attention in [module for module in unet.modules() if isinstance(module, Attention)]:
        zero(attention.to_out[0])
    zero(unet.conv_out)
    return unet


def zero(layer: nn.Module) -> None:
    """Set all weights of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
