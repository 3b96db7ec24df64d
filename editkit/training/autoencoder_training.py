"""Training of an encoder and the conditional diffusion model that decodes, together, by denoising alone (arXiv 2111.15640)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.assets import spent_on
from editkit.backbones.diffae import DiffAEBackbone
from editkit.engine.guidance import Clip
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.networks.two_conditions import TwoConditions
from editkit.training.denoising import check_share, denoising_error, mirrored
from editkit.training.editor import requests_of
from editkit.training.folder import FolderMethod
from editkit.training.method import OptimizerFactory, SchedulerFactory
from editkit.training.rates import rated
from editkit.types import Condition, EditRequest

SHOWN = 8  # pictures of a sample grid


class AutoencoderTraining(FolderMethod):
    """Train a diffusion autoencoder on images alone (section 3): the decoder's error is all that the encoder learns from.

    The export is the backbone's folder; it holds the moving average, so that all later stages see the averaged encoder.
    Departures from the released code: times are stratified over the batch, and the error is that of the network's own output,
    so of v in a network that starts from one that predicts v.

    Args:
        denoiser: the autoencoder.
        flipped: share of the images that are mirrored, for encoder and decoder alike.
        sample_steps: DDIM steps of the sample grids.
        encoder_rate: of the encoder, as a share of the decoder's learning rate (ours; 1 is published).
        reading_rate: of the layers that read codes, as a multiple of the decoder's (ours; 1 is published).
        earlier: exports of the stages that the denoiser began with, for the card.

    Raises:
        UsageError: `flipped` is no share, `encoder_rate` is not above 0 and up to 1, or `reading_rate` is below 1.
    """

    def __init__(
        self,
        denoiser: DiffAEBackbone,
        flipped: float,
        sample_steps: int,
        encoder_rate: float = 1.0,
        reading_rate: float = 1.0,
        earlier: Sequence[str] = (),
        *,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        if not 0 < encoder_rate <= 1:
            raise UsageError(f"method.encoder_rate={encoder_rate} is out of range; give a share of the decoder's, up to 1")
        if reading_rate < 1:
            raise UsageError(f"method.reading_rate={reading_rate} is out of range; give a multiple of the decoder's, from 1")
        if optimizer is not None:
            readers = [p for m in denoiser.modules() if isinstance(m, TwoConditions) for p in m.code.parameters()]
            optimizer = rated(optimizer, [(denoiser.encoder.parameters(), encoder_rate), (readers, reading_rate)])
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.denoiser = denoiser
        self.flipped, self.sample_steps = check_share("flipped", flipped), sample_steps
        self.preview: list[EditRequest] = []
        self.earlier_seconds = sum(spent_on(path) or 0.0 for path in earlier)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the UNet and the encoder, one group."""
        return {"autoencoder": self.denoiser.parameters()}

    def precompute(self, dataset: Any) -> None:
        """Keep the pictures of the sample grids."""
        self.preview = requests_of(dataset, SHOWN)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the error of the denoiser (B,), given the codes of the clean images that are noised."""
        images = mirrored(batch["image"], self.flipped)
        return {"denoise": denoising_error(self.denoiser, images, Condition(vector=self.denoiser.semantic_code(images)))}

    @torch.no_grad()
    def sample_grid(self) -> Tensor | None:
        """Return training pictures above what their codes alone say, decoded from fixed noise, (2, N, 3, H, W)."""
        if not self.preview:
            return None
        images = torch.stack([request.image for request in self.preview if request.image is not None]).to(self.device)
        noise = batch_noise(
            images.shape[1:], [request.key for request in self.preview], seed=0, purpose="grid", device=self.device
        )
        cond = Condition(vector=self.denoiser.semantic_code(images))
        back = sample(self.denoiser, noise, self.denoiser.levels(self.sample_steps), cond, guidance=Clip())
        return torch.stack([images, back.clamp(-1, 1)])

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        self.denoiser.save(folder)

    def card(self) -> dict[str, Any]:
        """Return what the export says about itself, with the seconds of the stages before."""
        return {**super().card(), "earlier_seconds": self.earlier_seconds}

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images."""
        images = torch.rand(2, *self.denoiser.sample_shape, device=self.device) * 2 - 1
        return {"image": images, "key": ["dummy/0", "dummy/1"]}
