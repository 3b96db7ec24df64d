"""The first stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editkit.backbones.diffae import DiffAEBackbone, DiffusionAutoencoder, begin_diffae, stages_before, take_encoder
from editkit.training.autoencoder_training import AutoencoderTraining
from editkit.training.folder import network_arguments
from editkit.training.method import OptimizerFactory, SchedulerFactory


class Autoencoder(AutoencoderTraining):
    """Train a diffusion autoencoder; its export is a folder for `load_diffae`.

    Args:
        network: arguments of `DiffusionAutoencoder`; with `init_from` those of `begin_diffae`.
        init_from: pixel model to start from, or a trained diffusion autoencoder to go on with; None starts from scratch, as
            published.
        encoder_from: export of `EncoderStart` whose encoder it starts with; None starts it as published.
        flipped, sample_steps, encoder_rate, reading_rate: see `AutoencoderTraining`.

    Raises:
        UsageError: two encoders to start with, or one of another shape.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        init_from: str | None = None,
        encoder_from: str | None = None,
        flipped: float = 0.5,
        sample_steps: int = 20,
        encoder_rate: float = 1.0,
        reading_rate: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        arguments = network_arguments(network)
        net = DiffusionAutoencoder(**arguments) if init_from is None else begin_diffae(init_from, **arguments)
        if encoder_from is not None:
            take_encoder(net, encoder_from, init_from)
        rates = {"encoder_rate": encoder_rate, "reading_rate": reading_rate}
        factories: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
        earlier = stages_before(net, encoder_from, init_from)
        super().__init__(DiffAEBackbone(net), flipped, sample_steps, earlier=earlier, **rates, **factories)
