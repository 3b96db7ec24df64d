"""UNet2DModel with a time sinusoid that is wider than its first level, the one thing of ADM that its config cannot say.

ADM networks whose first multiplier is not 1 (the 512 pixel one: half) have it. The folder is that of UNet2DModel with one
more key in config.json; plain diffusers refuses its weights, as it must.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import Timesteps
from safetensors.torch import load_file
from torch import nn

KEY = "time_sinusoid_channels"


def widen_time(unet: UNet2DModel, channels: int) -> UNet2DModel:
    """Give a network a sinusoid of another width, and the first layer of its time embedding new weights to match."""
    unet.time_proj = Timesteps(channels, unet.config.flip_sin_to_cos, unet.config.freq_shift)
    unet.time_embedding.linear_1 = nn.Linear(channels, unet.time_embedding.linear_1.out_features)
    return unet


def save_unet(unet: UNet2DModel, folder: Path) -> None:
    """Write config.json and the weights as safetensors."""
    unet.save_pretrained(folder)
    channels = unet.time_proj.num_channels
    if channels != unet.config.block_out_channels[0]:
        config = json.loads((folder / "config.json").read_text()) | {KEY: channels}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_unet(folder: Path, dtype: torch.dtype) -> UNet2DModel:
    """Read what `save_unet` or diffusers wrote.

    Raises:
        OSError, ValueError, TypeError, RuntimeError: the folder does not hold such a network in safetensors.
    """
    config = json.loads((folder / "config.json").read_text())
    channels = config.pop(KEY, None)
    if channels is None:
        return UNet2DModel.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False)
    unet = widen_time(UNet2DModel.from_config(config), channels)
    unet.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return nn.Module.to(unet, dtype)  # diffusers' own `to` warns of layers to be kept in float32, of which there are none
