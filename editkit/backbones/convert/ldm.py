"""The networks of latent diffusion (Rombach et al. 2022): UNet with cross-attention, ControlNet on it, and autoencoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor

from editkit.backbones.convert import ddpm
from editkit.backbones.convert.blocks import joined, placed, places
from editkit.backbones.convert.exact import load_exactly
from editkit.backbones.convert.layout import Source
from editkit.errors import UserError

UNET, VAE, CONTROL = "model.diffusion_model.", "first_stage_model.", "control_model."
HEADS = 8  # of SD 1.x, at every width
HEAD_CHANNELS = 64  # of SD 2.x, whose transformers begin and end with linear layers
SCALING = 0.18215  # of the latents, in every published configuration


def part(source: Source, prefix: str) -> Source:
    """Return a source of the tensors whose names start so, without that prefix.

    Raises:
        UserError: there are none.
    """
    tensors = {name.removeprefix(prefix): value for name, value in source.tensors.items() if name.startswith(prefix)}
    if not tensors:
        raise UserError(f"{source.name} has no tensors {prefix}*: it is a part of a model, and the whole is needed")
    return replace(source, tensors=tensors)


def to_unet(source: Source, *, sample_size: int) -> UNet2DConditionModel:
    """Return the network of tensors by LDM's names; every size but that of its images is read from them.

    Raises:
        UserError: a variant that cannot be converted.
    """
    config = _architecture(source) | {
        "sample_size": sample_size,
        "out_channels": source.shape("out.2.weight")[0],
    }
    config["up_block_types"] = tuple(kind.replace("Down", "Up") for kind in reversed(config["down_block_types"]))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return load_exactly(source.name, unet, _renamed(source, config))


def to_controlnet(source: Source) -> ControlNetModel:
    """Return the ControlNet (Zhang et al. 2023) of tensors by its authors' names; the hint is an RGB image in [0, 1].

    Raises:
        UserError: a variant that cannot be converted.
    """
    hints = sum(bool(re.fullmatch(r"input_hint_block\.\d+\.weight", name)) for name in source.tensors)
    widths = [source.shape(f"input_hint_block.{2 * n}.weight")[0] for n in range(0, hints - 1, 2)]
    homes = {"input_hint_block.0": "controlnet_cond_embedding.conv_in", "middle_block_out.0": "controlnet_mid_block"}
    homes |= {f"input_hint_block.{2 * n}": f"controlnet_cond_embedding.blocks.{n - 1}" for n in range(1, hints - 1)}
    homes[f"input_hint_block.{2 * (hints - 1)}"] = "controlnet_cond_embedding.conv_out"
    zeros = {name.split(".")[1] for name in source.tensors if name.startswith("zero_convs.")}
    homes |= {f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in zeros}
    config = _architecture(source) | {
        "conditioning_channels": source.shape("input_hint_block.0.weight")[1],
        "conditioning_embedding_out_channels": tuple(widths),
    }
    with torch.device("meta"):
        net = ControlNetModel(**config)
    return load_exactly(source.name, net, _renamed(source, config, homes))


def to_vae(source: Source, *, sample_size: int) -> AutoencoderKL:
    """Return the autoencoder of tensors by LDM's names, which are those of the DDPM port but for encoder. and decoder.

    Raises:
        UserError: a variant that cannot be converted.
    """
    levels = 1 + max((int(n[1]) for name in source.tensors if (n := re.match(r"encoder\.down\.(\d+)\.", name))), default=0)
    layers = sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.norm1\.weight", name)) for name in source.tensors)
    config: dict[str, Any] = {
        "in_channels": source.shape("encoder.conv_in.weight")[1],
        "out_channels": source.shape("decoder.conv_out.weight")[0],
        "block_out_channels": tuple(source.shape(f"encoder.down.{n}.block.0.conv1.weight")[0] for n in range(levels)),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": layers,
        "latent_channels": source.shape("post_quant_conv.weight")[1],
        "norm_num_groups": 32,
        "sample_size": sample_size,
        "scaling_factor": SCALING,
    }
    found = {name: value for name, value in source.tensors.items() if not name.startswith(("encoder.", "decoder."))}
    for half in ("encoder.", "decoder."):
        renamed = ddpm.renamed(part(source, half).tensors, levels)
        found |= {f"{half}{name}": value for name, value in renamed.items()}
    with torch.device("meta"):
        vae = AutoencoderKL(**config)
    return load_exactly(source.name, vae, found)


def _architecture(source: Source) -> dict[str, Any]:
    """Return the arguments that a UNet and a ControlNet share."""
    levels, layers = _depth(source)
    first = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    widths = tuple(source.shape(f"{place}.0.out_layers.3.weight")[0] for place in first)
    attends = [f"{place}.1.proj_in.weight" in source.tensors for place in first]
    linear = len(source.shape("middle_block.1.proj_in.weight")) == 2
    unit = HEAD_CHANNELS if linear else HEADS
    if any(width % unit for width in widths):
        raise UserError(f"{source.name} has blocks of {widths} channels, which {unit} does not divide: its heads are not known")
    depths = {name for name in source.tensors if re.fullmatch(r"middle_block\.1\.transformer_blocks\.\d+\.norm1\.weight", name)}
    return {
        "in_channels": source.shape("input_blocks.0.0.weight")[1],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends),
        "transformer_layers_per_block": len(depths),
        "cross_attention_dim": source.shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight")[1],
        "attention_head_dim": tuple(width // HEAD_CHANNELS for width in widths) if linear else HEADS,  # diffusers means heads
        "use_linear_projection": linear,
        "upcast_attention": linear,  # SD 2.x overflows in half precision
        "norm_num_groups": 32,
    }


def _depth(source: Source) -> tuple[int, int]:
    """Return levels and blocks a level: every level but the last ends its way down with a strided convolution."""
    blocks = 1 + max((int(n[1]) for name in source.tensors if (n := re.match(r"input_blocks\.(\d+)\.", name))), default=0)
    levels = 1 + sum(bool(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name)) for name in source.tensors)
    if blocks % levels or blocks == levels:
        raise UserError(
            f"{source.name} has {blocks} blocks on its way down for {levels} levels: a variant that cannot be converted"
        )
    return levels, blocks // levels - 1


def _renamed(source: Source, config: Mapping[str, Any], more: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    levels = len(config["block_out_channels"])
    homes = dict(places(source.tensors, levels, config["layers_per_block"], attention="proj_in")) | dict(more or {})
    return {joined(*placed(name, homes)): value for name, value in source.tensors.items()}
