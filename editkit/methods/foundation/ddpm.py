"""An unconditional pixel diffusion model in diffusers' layout: the backbone that the pixel methods stand on.

DDPM training (Ho et al. 2020) of a UNet2DModel that predicts v = a eps - s x0 (Salimans & Ho 2022, appendix D): unlike
eps, v gives a usable x0 at high noise, which is where a small network's colours would drift.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.backbones.saving import save_part
from editkit.backbones.scheduler_config import parameterization_of, schedule_of
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError, suggestion
from editkit.metrics.oracle import load_oracle
from editkit.training.denoising import stratified
from editkit.training.figures import KNOWN, diffusion_figures, record
from editkit.training.folder import FolderMethod, network_arguments

GRID = 16  # images of a sample grid


class PixelDiffusion(FolderMethod):
    """Train a UNet2DModel on images alone.

    Args:
        network: arguments of diffusers' UNet2DModel.
        noise: arguments of diffusers' DDPMScheduler; `prediction_type` says what the network learns.
        closed_skips: keep the skip connections of maps of at most this side at zero, so that what they hold has no way round
            the bottleneck and a shift of it can change it (ours; the network stays an ordinary UNet2DModel); 0 closes none.
        dropped_skips: share of the images whose open skip connections are dropped in training, at times from `drop_from` on; what
            does not depend on the noise has to come from the bottleneck there, so that shifts of it reach small parts (ours).
        focus: share of the times drawn where images take shape; the rest, and all with 0, are uniform.
        focus_at: mean and standard deviation of ln(s/a) at those times (in the manner of Karras et al. 2022, table 1; there
            -1.2 and 1.2, which leaves too little for the layout of a face when training is short).
        init_from: a pixel-model folder whose weights to start from; None starts from scratch.
        sample_steps: DDIM steps of the sample grids.
        domain: what the task `measure` measures on: "faces", "cat", "dog", "fox" or "styles".
        oracle: what reads it.
        weights: folder that the task `measure` reads and whose card it completes.

    Raises:
        UsageError: `dropped_skips` of a network that predicts eps, which is nothing but noise.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        noise: Mapping[str, Any],
        closed_skips: int = 0,
        dropped_skips: float = 0.0,
        drop_from: float = 100.0,
        focus: float = 0.0,
        focus_at: tuple[float, float] = (0.7, 1.2),
        init_from: str | None = None,
        sample_steps: int = 30,
        domain: str = "faces",
        oracle: str = "editkit:toy-oracle",
        weights: str = "editkit:faces-ddpm",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        start = None if init_from is None else load_pixel(init_from).unet
        self.unet = UNet2DModel(**(network_arguments(network) if start is None else _arguments(start)))
        if start is not None:
            self.unet.load_state_dict(start.state_dict())
        close_skips(self.unet, closed_skips)
        self.ddpm = DDPMScheduler(**dict(noise))
        self.noise_schedule = schedule_of(self.ddpm.config)
        self.parameterization = parameterization_of(self.ddpm.config)
        self.dropped_skips, self.drop_from = dropped_skips, drop_from
        if dropped_skips and self.parameterization == "eps":
            raise UsageError("method.dropped_skips needs a network that predicts v or x0: set method.noise.prediction_type")
        self.focus, self.focus_at = focus, tuple(focus_at)
        if domain not in KNOWN:
            raise UsageError(f"method.domain={domain} is unknown.{suggestion(domain, KNOWN)} Choose from {', '.join(KNOWN)}")
        self.sample_steps, self.weights, self.domain, self.oracle = sample_steps, weights, domain, oracle
        table = self.noise_schedule.table
        self.register_buffer("log_sigma", ((1 - table) / table).log().div(2).float(), persistent=False)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"unet": self.unet.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the mean squared error of the network's output per image, (B,)."""
        x0 = batch["image"]
        t = self._times(len(x0))
        eps = torch.randn_like(x0)
        x = self.noise_schedule.add_noise(x0, t, eps)
        dropped = (torch.rand(len(t), device=t.device) < self.dropped_skips) & (t >= self.drop_from)
        kept = (~dropped).to(x0)[:, None, None, None]
        with without_skips(self.unet, kept):
            output = self.unet(x, t).sample.float()
        return {"denoise": (output - self._target(x0, eps * kept, t)).square().mean((1, 2, 3))}

    def _times(self, count: int) -> Tensor:
        """Draw times (count,), stratified over the batch."""
        focused, last = round(self.focus * count), len(self.log_sigma) - 1
        quantile = stratified(focused, self.device).clamp(1e-4, 1 - 1e-4)
        mean, spread = self.focus_at
        near = torch.searchsorted(self.log_sigma, mean + spread * torch.special.ndtri(quantile))
        anywhere = (stratified(count - focused, self.device) * (last + 1)).long()
        return torch.cat([near, anywhere]).clamp(max=last)

    def _target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if self.parameterization == "eps":
            return eps
        if self.parameterization == "x0":
            return x0
        alpha_bar = self.noise_schedule.alpha_bar(t).to(x0).view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Return DDIM samples from fixed noise, (16, 3, H, W)."""
        backbone = PixelBackbone(self.unet, self.noise_schedule, self.parameterization)
        levels = self.noise_schedule.levels(self.sample_steps)
        noise = batch_noise(backbone.sample_shape, [str(k) for k in range(GRID)], seed=0, purpose="grid", device=self.device)
        images = sample(backbone, noise, levels).clamp(-1, 1)
        self.freeze_rest()  # the backbone froze the network that is being trained
        self.unet.train()
        return images

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": lambda data: record(self.weights, self._figures())}

    def _figures(self) -> dict[str, Any]:
        return diffusion_figures(load_pixel(self.weights), load_oracle(self.oracle), KNOWN[self.domain])

    def save(self, folder: Path) -> None:
        """Write unet/ (half precision) and scheduler/ in diffusers' layout."""
        weights = {name: tensor.clone() for name, tensor in self.unet.state_dict().items()}
        save_part(self.unet.half(), folder / "unet")
        self.unet.float().load_state_dict(weights)
        self.ddpm.save_pretrained(folder / "scheduler")

    def dummy_batch(self) -> dict[str, Any]:
        side = self.unet.config.sample_size
        return {"image": torch.zeros(2, 3, side, side, device=self.device), "key": ["a", "b"]}


def _arguments(unet: UNet2DModel) -> dict[str, Any]:
    """Return what a network was made with, without the folder that it came from, which an export should not tell."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def close_skips(unet: UNet2DModel, side: int) -> None:
    """Set what the up blocks read of skip connections of at most this side to zero, and keep training from changing that."""
    size = unet.config.sample_size // 2 ** (len(unet.up_blocks) - 1)
    running = unet.config.block_out_channels[-1]  # channels of the signal from below; those of the skip connection come after
    for block in unet.up_blocks:
        if size > side:
            return
        for resnet in block.resnets:
            for weight in (resnet.conv1.weight, resnet.conv_shortcut.weight):
                _close(weight, running)
            running = resnet.out_channels
        size *= 2


@contextlib.contextmanager
def without_skips(unet: UNet2DModel, kept: Tensor) -> Iterator[None]:
    """Multiply all skip connections by `kept` (B, 1, 1, 1), 0 or 1, inside the context."""

    def drop(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, skips, *others = args
        return hidden, tuple(skip * kept.to(skip) for skip in skips), *others

    handles = [block.register_forward_pre_hook(drop) for block in unet.up_blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _close(weight: nn.Parameter, first: int) -> None:
    weight.data[:, first:] = 0
    weight.register_hook(lambda gradient: torch.cat([gradient[:, :first], torch.zeros_like(gradient[:, first:])], 1))
