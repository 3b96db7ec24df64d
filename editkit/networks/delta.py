"""Delta blocks: from the middle block's output h and the time to a shift of h (Asyrp, Kwon et al. 2023)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class DdpmDelta(nn.Module):
    """The block for DDPM-style networks: a 1x1 convolution, the time added, GroupNorm, swish, a 1x1 convolution.

    It sees every position of h alone (but for the norm's statistics), has no residual path, and is not zero at the start
    unless asked.

    Args:
        channels: channels of h.
        time_width: width of the backbone's time embedding; 0 leaves the time out.
        zero_init: start with a shift of zero.
    """

    def __init__(self, channels: int, time_width: int, *, zero_init: bool = False) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.time = nn.Linear(time_width, channels) if time_width else None
        self.norm = nn.GroupNorm(_groups(channels), channels, eps=1e-6)
        self.conv_out = _last(channels, zero_init)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        """Return the shift, (B, C, h, w), of h at the time embedding temb (B or 1, time_width)."""
        x = self.conv_in(h)
        if self.time is not None:
            x = x + self.time(F.silu(temb))[:, :, None, None]
        return self.conv_out(F.silu(self.norm(x)))


class AdmDelta(nn.Module):
    """The block for ADM-style networks: GroupNorm and SiLU come before each 1x1 convolution; arguments as DdpmDelta."""

    def __init__(self, channels: int, time_width: int, *, zero_init: bool = False) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(channels), channels, eps=1e-5)
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.time = nn.Linear(time_width, channels) if time_width else None
        self.norm = nn.GroupNorm(_groups(channels), channels, eps=1e-5)
        self.conv_out = _last(channels, zero_init)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        """Return the shift, (B, C, h, w), of h at the time embedding temb (B or 1, time_width)."""
        # torch 2.13 on the CPU crashes in GroupNorm's backward for a channels-last input that needs no gradient
        x = self.conv_in(F.silu(self.norm_in(h.contiguous())))
        if self.time is not None:
            x = x + self.time(F.silu(temb))[:, :, None, None]
        return self.conv_out(F.silu(self.norm(x)))


DELTAS: dict[str, type[DdpmDelta] | type[AdmDelta]] = {"ddpm": DdpmDelta, "adm": AdmDelta}


def _groups(channels: int) -> int:
    return math.gcd(32, channels)


def _last(channels: int, zero_init: bool) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1)
    if zero_init:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    return conv
