"""Unconditional pixel-space models in diffusers' layout (UNet2DModel: DDPM, and ADM-style networks)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.backbones.base import Backbone, Finish
from editkit.backbones.wide_time import load_unet
from editkit.engine.schedule import Schedule
from editkit.errors import UserError
from editkit.types import Condition, Prediction

_PARAMETERIZATION = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PixelBackbone(Backbone):
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

    @property
    def bottleneck_shape(self) -> tuple[int, int, int]:
        """Return (C, h, w) of the middle block's output."""
        _, height, width = self.sample_shape
        shrink = 2 ** sum(block.downsamplers is not None for block in self.unet.down_blocks)
        return self.unet.config.block_out_channels[-1], height // shrink, width // shrink

    @property
    def time_width(self) -> int:
        """Return the width of the time embedding after its two layers."""
        return self.unet.time_embedding.linear_2.out_features

    def forward(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps of x (B, C, H, W) at model time t."""
        return self._prediction(x, t, self.unet(x.to(self.unet.dtype), self._times(t, len(x))).sample)

    def halves(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> tuple[Tensor, Finish]:
        """Run the encoder and the middle block; `finish` runs the decoder for a list of h in one batch."""
        unet = self.unet
        emb = self.time_embedding(self._times(t, len(x)))
        hidden = x.to(unet.dtype)
        hidden = unet.conv_in(2 * hidden - 1 if unet.config.center_input_sample else hidden)
        skips = (hidden,)
        for block in unet.down_blocks:
            hidden, more = block(hidden_states=hidden, temb=emb)
            skips += more
        h = unet.mid_block(hidden, emb)

        def finish(hs: Sequence[Tensor]) -> list[Prediction]:
            n = len(hs)
            output = self._decode_half(
                torch.cat([one.to(unet.dtype) for one in hs]), [_repeat(s, n) for s in skips], _repeat(emb, n)
            )
            return [self._prediction(x, t, part) for part in output.chunk(n)]

        return h, finish

    def time_embedding(self, t: float | Tensor) -> Tensor:
        """Return the network's own embedding of the time, (B, time_width)."""
        times = self._times(t, 1) if not isinstance(t, Tensor) or t.ndim == 0 else t
        return self.unet.time_embedding(self.unet.time_proj(times).to(self.unet.dtype))

    def places(self) -> dict[str, nn.Module]:
        """Return the middle block and the blocks of both halves."""
        found: dict[str, nn.Module] = {"bottleneck": self.unet.mid_block}
        found |= {f"down.{n}": block for n, block in enumerate(self.unet.down_blocks)}
        return found | {f"up.{n}": block for n, block in enumerate(self.unet.up_blocks)}

    def accelerate(self, *, channels_last: bool = False, compile: bool = False) -> PixelBackbone:
        """Change the memory layout, or compile the layers inside the blocks (whole blocks would hide taps); return self."""
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if compile:
            for block in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
                for layer in (*block.resnets, *(getattr(block, "attentions", None) or ())):
                    layer.compile()
        return self

    def _decode_half(self, hidden: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        for block in self.unet.up_blocks:
            count = len(block.resnets)
            skips, now = skips[:-count], tuple(skips[-count:])
            hidden = block(hidden, now, emb)
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))

    def _times(self, t: float | Tensor, batch: int) -> Tensor:
        times = torch.as_tensor(t, device=self.unet.device)
        return times.expand(batch) if times.ndim == 0 else times

    def _prediction(self, x: Tensor, t: float | Tensor, output: Tensor) -> Prediction:
        mean, *variance = output.float().split(x.shape[1], dim=1)
        pred = self.schedule.convert(x.float(), t, mean, self.parameterization)
        if variance:
            pred.features["variance"] = variance[0]
        return pred


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
    if dtype not in _DTYPES:
        raise UserError(f"backbone.dtype={dtype} is unknown: choose from {', '.join(_DTYPES)}")
    folder = resolve(path, download=download, revision=revision)
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (home / "config.json").exists():
        raise UserError(f"{folder} is not a pixel model: expected unet/config.json or config.json in it")
    config = dict(scheduler) if scheduler is not None else _scheduler_config(folder, home)
    try:
        unet = load_unet(home, _DTYPES[dtype])
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{home} does not hold a UNet2DModel with safetensors weights: {reason}") from error
    return PixelBackbone(unet, schedule_of(config), parameterization_of(config))


def parameterization_of(config: Mapping[str, Any]) -> str:
    """Return "eps", "v" or "x0" from a diffusers scheduler config."""
    kind = config.get("prediction_type", "epsilon")
    if kind not in _PARAMETERIZATION:
        raise UserError(
            f"prediction_type={kind} is not supported: the scheduler config must say one of {', '.join(_PARAMETERIZATION)}"
        )
    return _PARAMETERIZATION[kind]


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Return the noise schedule of a diffusers scheduler config."""
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = Schedule.from_betas(torch.as_tensor(config["trained_betas"], dtype=torch.float64))
    elif name == "linear":
        schedule = Schedule.linear(steps, start, end)
    elif name == "scaled_linear":
        schedule = Schedule.scaled_linear(steps, start, end)
    elif name == "squaredcos_cap_v2":
        schedule = Schedule.cosine(steps)
    else:
        raise UserError(f"beta_schedule={name} is not supported: choose from linear, scaled_linear, squaredcos_cap_v2")
    return schedule.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def _scheduler_config(folder: Path, home: Path) -> dict[str, Any]:
    for place in (folder / "scheduler", folder, home):
        if (place / "scheduler_config.json").exists():
            return json.loads((place / "scheduler_config.json").read_text())
    raise UserError(
        f"{folder} has no scheduler_config.json: give its noise schedule, such as "
        "'+backbone.scheduler={beta_schedule: linear, prediction_type: epsilon}'"
    )


def _repeat(tensor: Tensor, n: int) -> Tensor:
    return tensor.repeat(n, *[1] * (tensor.ndim - 1)) if n > 1 else tensor
