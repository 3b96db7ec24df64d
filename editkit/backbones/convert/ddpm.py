"""DDPM checkpoints (.ckpt): the PyTorch port of Ho et al. 2020 that SDEdit, DDIM and DiffusionCLIP share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor

from editkit.backbones.convert.layout import Converted, Layout, Source
from editkit.backbones.convert.unet import USE, assemble, describe, scheduler_of, write_pixel_model
from editkit.errors import UserError

# Every network of this family attends at 16x16 pixels first, which tells the size of its images.
ATTENDED = 16

_RENAMED = [
    (r"^temb\.dense\.0\.", "time_embedding.linear_1."),
    (r"^temb\.dense\.1\.", "time_embedding.linear_2."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"^mid\.block_1\.", "mid_block.resnets.0."),
    (r"^mid\.block_2\.", "mid_block.resnets.1."),
    (r"^mid\.attn_1\.", "mid_block.attentions.0."),
    (r"^(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"^(down|up)\.(\d+)\.(down|up)sample\.", r"\1_blocks.\2.\3samplers.0."),
    (r"(resnets\.\d+)\.temb_proj\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.nin_shortcut\.", r"\1.conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]


def to_unet(source: Source) -> UNet2DModel:
    """Return the network: time added, the time as [sin, cos], GroupNorm's guard 1e-6, strides padded below and right.

    Levels, widths, blocks and the levels with attention are those of the tensors; `size` in the settings replaces the
    size of the images that follows from where the attention is.

    Raises:
        UserError: a variant that UNet2DModel cannot express, or no attention that would tell the size.
    """
    levels = 1 + max(int(found[1]) for name in source.tensors if (found := re.match(r"down\.(\d+)\.", name)))
    layers = sum(bool(re.match(r"down\.0\.block\.\d+\.norm1\.weight", name)) for name in source.tensors)
    attended = [f"down.{level}.attn.0.q.weight" in source.tensors for level in range(levels)]
    size = source.number("size")
    if size is None and True not in attended:
        raise UserError(f"{source.name} has no attention that would tell the size of its images: add size=256 or what it is")
    config: dict[str, Any] = {
        "sample_size": size or ATTENDED << attended.index(True),
        "in_channels": source.shape("conv_in.weight")[1],
        "out_channels": source.shape("conv_out.weight")[0],
        "block_out_channels": tuple(source.shape(f"down.{level}.block.0.conv1.weight")[0] for level in range(levels)),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attended),
        "up_block_types": tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attended)),
        "attention_head_dim": None,  # one head
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "norm_num_groups": 32,
    }
    return assemble(source.name, config, renamed(source.tensors, levels))


def renamed(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return the tensors by UNet2DModel's names; its attention is made of linear layers, its way up counts from the middle."""
    found = {}
    for name, value in tensors.items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        name = re.sub(r"^up_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name)
        is_linear = ".attentions." in name and value.ndim == 4
        found[name] = value.flatten(1) if is_linear else value
    return found


def convert(source: Source) -> Converted:
    """Return the pixel model's folder."""
    unet, scheduler = to_unet(source), scheduler_of("linear", learned_variance=False)
    return Converted(describe(unet), USE, lambda folder: write_pixel_model(folder, unet, scheduler))


SETTINGS = {"size": "side of its images in pixels, if not the one that attention at 16x16 gives"}
MARKS = (("temb.dense.0.weight", "down.0.block.0.conv1.weight", "mid.attn_1.q.weight"),)
LAYOUT = Layout("ddpm", "DDPM .ckpt (SDEdit, DDIM, DiffusionCLIP)", MARKS, convert, SETTINGS)
