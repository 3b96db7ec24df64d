"""From named tensors and a configuration to a pixel model's folder: unet/ and scheduler/ in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from editkit.backbones.convert.exact import load_exactly
from editkit.backbones.wide_time import save_unet, widen_time
from editkit.errors import UsageError, suggestion

SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
USE = "backbone.path={path}"


def assemble(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UNet2DModel:
    """Return the network that `config` describes, with exactly these tensors, in single precision.

    Args:
        name: the source, for messages.
        config: arguments of UNet2DModel; the width of the time sinusoid is read from the tensors.
        tensors: by the names of UNet2DModel.

    Raises:
        UserError: tensors that are missing, left over or of another shape.
    """
    sinusoid = tensors["time_embedding.linear_1.weight"].shape[1]
    with torch.device("meta"):
        unet = UNet2DModel(**config)
        if sinusoid != config["block_out_channels"][0]:
            widen_time(unet, sinusoid)
    return load_exactly(name, unet, tensors)


def scheduler_of(schedule: str, *, learned_variance: bool) -> DDPMScheduler:
    """Return the noise schedule of 1000 steps that all published pixel models of these layouts use.

    Args:
        schedule: "linear" (1e-4 to 0.02) or "cosine".
        learned_variance: the network says the variance between the two bounds of its posterior.

    Raises:
        UsageError: another schedule.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"schedule={schedule} is unknown.{suggestion(schedule, SCHEDULES)} Choose {' or '.join(SCHEDULES)}")
    variance = "learned_range" if learned_variance else "fixed_small"
    return DDPMScheduler(beta_schedule=SCHEDULES[schedule], variance_type=variance, clip_sample=False)


def write_pixel_model(folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
    """Write unet/ and scheduler/, which `load_pixel` reads."""
    save_unet(unet, folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")


def describe(unet: UNet2DModel) -> dict[str, Any]:
    """Return what a card says of a network."""
    config = unet.config
    return {
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "image_size": config.sample_size,
        "channels": list(config.block_out_channels),
        "blocks_per_level": config.layers_per_block,
        "learned_variance": config.out_channels == 2 * config.in_channels,
    }
