"""Stable Diffusion on random weights at several sizes, both for our backbones and for diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from torch import Tensor
from transformers import CLIPVisionConfig

from tests.backbones import tiny_latent as tiny


@dataclass(frozen=True)
class Size:
    """What the networks of one size are made with, beside what those of `tiny_latent` are.

    Attributes:
        latent: side of the latents.
        length, width: of a text, in tokens, and of a token.
        unet, vae, text, vision: arguments of the networks.
        hint: widths of a ControlNet's embedding of its hint.
    """

    latent: int = tiny.LATENT
    length: int = tiny.LENGTH
    width: int = tiny.WIDTH
    unet: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=lambda: {"widths": (8, 16)})
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    hint: Sequence[int] = (4, 8)

    @property
    def pixels(self) -> int:
        """Return the side of the images."""
        return self.latent * 2 ** (len(self.vae["widths"]) - 1)

    def parts(self, in_channels: int = 4) -> dict[str, Any]:
        """Return the parts of a pipeline by the names that diffusers gives them."""
        text = {"hidden_size": self.width, "max_position_embeddings": self.length}
        return {
            "unet": tiny.unet(in_channels, **self._unet()),
            "vae": tiny.vae(**self.vae, sample_size=self.pixels),
            "text_encoder": tiny.text_encoder(**text | self.text),
            "tokenizer": tiny.tokenizer(self.length),
            "scheduler": tiny.scheduler(),
        }

    def controlnet(self) -> ControlNetModel:
        """Return a ControlNet for the UNet of `parts`."""
        return tiny.controlnet(hint=self.hint, **self._unet())

    def image_encoder(self) -> PaintByExampleImageEncoder:
        """Return diffusers' encoder of references."""
        torch.manual_seed(8)
        config = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 5}
        config |= {"image_size": 32, "patch_size": 8}
        return PaintByExampleImageEncoder(CLIPVisionConfig(**config | self.vision), proj_size=self.width).eval()

    def images(self, batch: int) -> Tensor:
        """Return smooth images (B, 3, H, W) in [-1, 1]."""
        return torch.nn.functional.interpolate(tiny.images(batch), size=self.pixels, mode="bilinear")

    def masks(self, batch: int) -> Tensor:
        """Return masks (B, 1, H, W), 1 in the middle."""
        return torch.nn.functional.interpolate(tiny.masks(batch), size=self.pixels)

    def _unet(self) -> dict[str, Any]:
        return {"sample_size": self.latent, "cross_attention_dim": self.width, **self.unet}


# "medium" is for one processor core. Its parts stand to each other as those of Stable Diffusion 1.5 do at the 256 pixels that
# InstructPix2Pix is trained at: encoding an image costs 1.4 of the UNet's passes (there 1.5), a text 0.09 (0.07).
SIZES: Mapping[str, Size] = {
    "tiny": Size(),
    "medium": Size(
        latent=16,
        length=77,
        width=192,
        unet={
            "block_out_channels": (64, 128, 256),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "attention_head_dim": 8,
        },
        vae={"widths": (24, 48, 96, 96), "layers_per_block": 2, "norm_num_groups": 24},
        text={"intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4},
        vision={"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "image_size": 64},
        hint=(16, 32, 96, 256),
    ),
    "sd15": Size(
        latent=64,
        length=77,
        width=768,
        unet={
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "attention_head_dim": 8,
        },
        vae={"widths": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
        text={"intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408},
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "image_size": 224,
            "patch_size": 14,
        },
        hint=(16, 32, 96, 256),
    ),
}
