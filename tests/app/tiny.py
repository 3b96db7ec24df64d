"""A tiny diffusion model with random weights on disk, and trained parts of Asyrp for it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel

from editkit.training.artefact import Artefact


def backbone(folder: Path, *, width: int = 8, seed: int = 0) -> Path:
    """Write a pixel model of 16 x 16 pictures in diffusers' layout."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    unet.save_pretrained(folder / "unet")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    return folder


def trained(path: Path, model: Path, *, target: str = "a smiling face", seed: int = 0, **card) -> Path:
    """Write a delta-h of random weights that belongs to a tiny model."""
    from editkit.backbones.pixel import load_pixel
    from editkit.networks.delta import DELTAS

    own = load_pixel(model)
    torch.manual_seed(seed)
    block = DELTAS[own.style](own.bottleneck_shape[0], own.time_width)
    about = {
        "method": "asyrp",
        "prompt": target,
        "kind": "network",
        "style": own.style,
        "bottleneck_shape": list(own.bottleneck_shape),
        "time_width": own.time_width,
        "backbone_digest": own.digest(),
        "t_edit": 0,
        "t_boost": 0,
        "t_start": None,
        "n_train": 40,
        "n_inv": 40,
        "text_cosine": 0.8,
    }
    return Artefact(target, block.state_dict(), card=about | card).save(path)
