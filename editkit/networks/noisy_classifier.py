"""A classifier of noised images: the encoder half of a diffusion UNet, told the time, with attention pooling.

ADM's classifier (Dhariwal & Nichol 2021, section 4.1): down blocks and middle block of the diffusion model's own design, and a
head in the manner of CLIP's (Radford et al. 2021). The encoder is diffusers', so that a diffusion model's own can start it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

ENCODER = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")


class NoisyClassifier(nn.Module):
    """Says of an image at a time of the noise scale which class it is of.

    Args:
        network: arguments of diffusers' UNet2DModel, whose encoder half is used.
        classes: how many there are.
        head_width: channels of an attention head of the pooling.

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(self, network: Mapping[str, Any], classes: int, head_width: int = 64) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"a classifier tells two classes apart or more, got {classes}")
        unet = UNet2DModel(**dict(network))
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        self.down_blocks, self.mid_block = unet.down_blocks, unet.mid_block
        channels = unet.config.block_out_channels[-1]
        size = unet.config.sample_size
        side = size // 2 ** sum(block.downsamplers is not None for block in unet.down_blocks)
        self.norm = nn.GroupNorm(unet.config.norm_num_groups, channels, eps=unet.config.norm_eps)
        self.pool = AttentionPool(channels, side * side, classes, max(1, channels // head_width))

    def begin_from(self, unet: UNet2DModel) -> None:
        """Copy the encoder's weights from a diffusion model of the same layout.

        Raises:
            RuntimeError: another layout.
        """
        for name in ENCODER:
            getattr(self, name).load_state_dict(getattr(unet, name).state_dict())

    def features(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Return the middle block's output (B, C, h, w) of images x (B, 3, H, W) at model time t, a number or (B,)."""
        times = torch.full((len(x),), t, device=x.device) if not isinstance(t, Tensor) else t.to(x.device).expand(len(x))
        emb = self.time_embedding(self.time_proj(times).to(self.conv_in.weight.dtype))
        hidden = self.conv_in(x)
        for block in self.down_blocks:
            hidden, _ = block(hidden_states=hidden, temb=emb)
        return self.mid_block(hidden, emb)

    def forward(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Return the classes' logits, (B, K)."""
        # torch 2.13 on the CPU crashes in GroupNorm's backward for a channels-last input that needs no gradient
        return self.pool(F.silu(self.norm(self.features(x, t).contiguous())))


class AttentionPool(nn.Module):
    """One query, the mean of all places, attends to the places and itself; what it finds is projected.

    Args:
        channels: of the map.
        places: of the map, h x w.
        width: of the output.
        heads: of the attention.
    """

    def __init__(self, channels: int, places: int, width: int, heads: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(channels, places + 1) / channels**0.5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, width, 1)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width) of a map (B, C, h, w)."""
        flat = x.flatten(2)
        tokens = torch.cat([flat.mean(2, keepdim=True), flat], 2) + self.positions.to(x.dtype)
        split = self.qkv(tokens).unflatten(1, (3, self.heads, -1)).transpose(3, 4)  # (B, 3, heads, N + 1, width of a head)
        q, k, v = split.unbind(1)
        found = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # what the other places ask is not needed
        return self.out(found.transpose(2, 3).flatten(1, 2))[:, :, 0]
