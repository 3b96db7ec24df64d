"""Unconditional pixel-space models in diffusers' layout (UNet2DModel: DDPM, and ADM-style networks)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor

from editkit.backbones.assets import resolve
from editkit.backbones.scheduler_config import parameterization_of, read_scheduler, schedule_of
from editkit.backbones.unet import UNetBackbone, dtype_of
from editkit.backbones.wide_time import load_unet
from editkit.engine.schedule import Schedule
from editkit.errors import UserError
from editkit.types import Condition, Prediction


class PixelBackbone(UNetBackbone):
    """A UNet2DModel as a Denoiser, frozen and in eval mode.

    A network with twice as many output channels as input channels (learned variance) keeps its first half as the
    prediction; the second is handed out as `features["variance"]`.

    Args:
        unet: the network.
        schedule: its noise schedule.
        parameterization: what it outputs, "eps", "v" or "x0".

    Raises:
        UserError: a network that needs class labels, or whose blocks have skip images of their own.
    """

    def __init__(self, unet: UNet2DModel, schedule: Schedule, parameterization: str = "eps") -> None:
        super().__init__()
        if unet.class_embedding is not None:
            raise UserError("this UNet needs class labels; only unconditional pixel models are supported")
        if unet.mid_block is None or any(hasattr(block, "skip_conv") for block in (*unet.down_blocks, *unet.up_blocks)):
            raise UserError(
                "this UNet cannot be split at the middle (no middle block, or Skip blocks); use one of Down/Up blocks"
            )
        if unet.config.time_embedding_type == "fourier":
            raise UserError("this UNet is a score network (fourier time embedding); only eps, v and x0 prediction are supported")
        self.unet = unet
        self.schedule = schedule
        self.parameterization = parameterization
        self.style = "adm" if unet.config.resnet_time_scale_shift == "scale_shift" else "ddpm"
        self.requires_grad_(False)
        self.eval()

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Return (C, H, W) of the images."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps of x (B, C, H, W) at model time t."""
        return self._prediction(x, t, self.unet(self._input(x, cond), self.times_of(t, len(x))).sample)


class UntrainedPixel(PixelBackbone):
    """A pixel model of random weights, to train from scratch; a file that was trained from it is told by its noise alone.

    Args:
        network: arguments of diffusers' UNet2DModel.
        scheduler: what a scheduler_config.json would say of the noise.

    Raises:
        UserError: as for `PixelBackbone`, and an unknown schedule or parameterization.
    """

    def __init__(self, network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(UNet2DModel(**network), schedule_of(scheduler), parameterization_of(scheduler))

    def identity(self) -> Mapping[str, Tensor]:
        """Return nothing: the next one has other weights."""
        return {}


def load_pixel(
    path: str | Path,
    *,
    dtype: str = "float32",
    scheduler: Mapping[str, Any] | None = None,
    download: bool = False,
    revision: str | None = None,
) -> PixelBackbone:
    """Load a pixel model from a diffusers folder: a pipeline (unet/ and scheduler/) or a bare UNet2DModel folder.

    Args:
        path: folder, bundled name ("editkit:faces-ddpm") or hub name that is already on this machine.
        dtype: precision of the network, "float32", "bfloat16" or "float16"; everything around it stays in float32.
        scheduler: what a scheduler_config.json would say, for folders that have none.
        download: fetch a hub name that is not on this machine.
        revision: revision of a hub name.

    Raises:
        UserError: no such weights, no UNet in the folder, no scheduler, an unknown dtype.
    """
    precision = dtype_of(dtype)
    folder = resolve(path, download=download, revision=revision)
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (home / "config.json").exists():
        raise UserError(f"{folder} is not a pixel model: expected unet/config.json or config.json in it")
    config = dict(scheduler) if scheduler is not None else read_scheduler(folder / "scheduler", home, folder)
    try:
        unet = load_unet(home, precision)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{home} does not hold a UNet2DModel with safetensors weights: {reason}") from error
    return PixelBackbone(unet, schedule_of(config), parameterization_of(config))
