"""Stable Diffusion in miniature: the same layout as the published checkpoints, random weights, built in under a second."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from editkit.backbones.assets import resolve
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.latent_folder import save_latent

SIZE, LATENT, WIDTH, LENGTH = 32, 16, 16, 12  # pixels, latents, width and number of tokens
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


@functools.cache
def tokenizer(length: int = LENGTH) -> CLIPTokenizer:
    """Return a tokenizer of CLIP's kind that takes so many tokens."""
    return CLIPTokenizer.from_pretrained(resolve("editkit:toy-clip"), model_max_length=length)


def text_encoder(**changes: Any) -> CLIPTextModel:
    cut = tokenizer()
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "vocab_size": len(cut),
        "max_position_embeddings": LENGTH,
        "bos_token_id": cut.bos_token_id,
        "eos_token_id": cut.eos_token_id,
        "pad_token_id": cut.eos_token_id,
    }
    return CLIPTextModel(CLIPTextConfig(**(config | changes))).eval()


def vae(widths: Sequence[int] = (8, 16), **changes: Any) -> AutoencoderKL:
    """Return an autoencoder, of factor 2, whose posterior has next to no variance: drawing from it gives its mean."""
    torch.manual_seed(2)
    config: dict[str, Any] = {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": SIZE,
    }
    made = AutoencoderKL(**(config | changes)).eval()
    with torch.no_grad():
        made.quant_conv.weight[4:] = 0
        made.quant_conv.bias[4:] = -30
    return made


def unet(in_channels: int = 4, **changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": in_channels,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**(config | changes)).eval()


def controlnet(seed: int = 4, hint: Sequence[int] = (4, 8), **changes: Any) -> ControlNetModel:
    """Return a ControlNet for `unet()`, with these widths of its hint's embedding, whose zero convolutions are not zero."""
    torch.manual_seed(seed)
    made = ControlNetModel.from_unet(unet(**changes), conditioning_embedding_out_channels=tuple(hint)).eval()
    with torch.no_grad():
        for layer in (*made.controlnet_down_blocks, made.controlnet_mid_block, made.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return made


def scheduler(**changes: Any) -> DDIMScheduler:
    """Return Stable Diffusion's DDIM."""
    return DDIMScheduler(**(SCHEDULER | {"steps_offset": 1, "set_alpha_to_one": False} | changes))


def parts(in_channels: int = 4, **changes: Any) -> dict[str, Any]:
    """Return the parts of a pipeline by the names that diffusers gives them."""
    return {
        "unet": unet(in_channels, **changes),
        "vae": vae(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "scheduler": scheduler(),
    }


def backbone(in_channels: int = 4, **changes: Any) -> LatentBackbone:
    """Return a backbone of `parts`."""
    made = parts(in_channels, **changes)
    return LatentBackbone(made["unet"], made["vae"], made["scheduler"].config, made["text_encoder"], made["tokenizer"])


def folder(path: str | Path, in_channels: int = 4) -> Path:
    """Write a pipeline folder and return it."""
    save_latent(backbone(in_channels), path)
    return Path(path)


def images(batch: int = 1) -> torch.Tensor:
    """Return smooth images (B, 3, SIZE, SIZE) in [-1, 1]."""
    coarse = torch.rand(batch, 3, 4, 4, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")


def masks(batch: int = 1) -> torch.Tensor:
    """Return masks (B, 1, SIZE, SIZE), 1 in the middle."""
    made = torch.zeros(batch, 1, SIZE, SIZE)
    made[..., 9:22, 7:24] = 1
    return made


def noise(batch: int = 1) -> torch.Tensor:
    """Return noise like the latents."""
    return torch.randn(batch, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(6))
