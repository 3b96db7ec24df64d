"""Methods that train the whole UNet of a latent model, in place, and the two things that they leave: a file and a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from editkit.backbones.base import Backbone
from editkit.backbones.latent import LatentBackbone
from editkit.backbones.latent_folder import save_latent
from editkit.backbones.scheduler_config import for_solver
from editkit.errors import UsageError, UserError
from editkit.networks.conv_in import widen_conv_in
from editkit.networks.lora import merged
from editkit.training.artefact import Artefact
from editkit.training.method import OptimizerFactory, SchedulerFactory
from editkit.training.pipeline_export import UNET, PipelineMethod


class UNetTuning(PipelineMethod):
    """Trains all of a latent model's UNet; autoencoder and text encoder are frozen.

    An export is the UNet in half precision, as one file, and beside it a pipeline folder that diffusers opens.

    Args:
        backbone: the latent model; its UNet is what is trained.
        lora: see `PipelineMethod`.
        checkpointing: run the UNet's blocks again in the backward pass instead of keeping their activations.
        solver: whose times and scheduler the exported folder names.
    """

    kind = "unet"
    strip: ClassVar[str] = UNET

    def __init__(
        self,
        backbone: LatentBackbone,
        *,
        checkpointing: bool = False,
        solver: str = "ddim",
        lora: Mapping[str, Any] | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(lora=lora, optimizer=optimizer, scheduler=scheduler)
        self.backbone, self.checkpointing, self.solver = backbone, checkpointing, solver

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of the UNet, or of its low-rank and new layers."""
        return {"unet": self.tuned_parameters()}

    def shardable(self) -> Sequence[nn.Module]:
        """Return the UNet."""
        return (self.backbone.unet,)

    def prepare_training(self) -> None:
        """Make the UNet ready for training."""
        super().prepare_training()
        if self.checkpointing:
            self.backbone.unet.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> UNetTuning:
        """Set the training mode of the UNet alone."""
        super().train(mode)
        self.backbone.train(False)
        self.backbone.unet.train(mode)
        return self

    def save_pipeline(self, folder: Path) -> None:
        """Write the model with the trained UNet."""
        save_latent(replaced(self.backbone, merged(self.backbone.unet).half(), self.solver), folder)

    def tuned(self, artefacts: Sequence[Artefact]) -> LatentBackbone:
        """Return the model with a trained UNet, or as it is without one.

        Raises:
            UsageError, UserError: several files, or one that does not fit.
        """
        if len(artefacts) > 1:
            names = ", ".join(repr(one.name) for one in artefacts)
            raise UsageError(f"one trained UNet can be used at a time, got {len(artefacts)}: {names}")
        return tuned(self.backbone, artefacts[0]) if artefacts else self.backbone


def tuned(backbone: LatentBackbone, artefact: Artefact) -> LatentBackbone:
    """Return a model with the UNet of a file, of which its strength is the share: 0 is the backbone's own, 1 as trained.

    Raises:
        UserError: not a file of a whole UNet, or one of other layers.
    """
    if artefact.card.get("kind") != "unet":
        maker = artefact.card.get("method", "something unknown")
        raise UserError(f"the weights {artefact.name!r} are not a trained UNet (made by {maker})")
    unet = merged(backbone.unet)
    own = unet.state_dict()
    shapes, theirs = ({name: tuple(t.shape) for name, t in state.items()} for state in (own, artefact.tensors))
    if shapes != theirs:
        odd = min(name for name, _ in theirs.items() ^ shapes.items())
        seen, here = theirs.get(odd, "missing"), shapes.get(odd, "unknown")
        raise UserError(f"the weights {artefact.name!r} belong to another backbone: their {odd} is {seen}, here it is {here}")
    with torch.no_grad():
        for name, tensor in own.items():
            given = artefact.tensors[name].to(tensor)
            tensor.copy_(given if artefact.strength == 1 else tensor.lerp(given, artefact.strength))
    return replaced(backbone, unet)


def replaced(backbone: LatentBackbone, unet: nn.Module, solver: str = "") -> LatentBackbone:
    """Return a model of another UNet and the same other parts, which a folder would say to sample with this solver."""
    config = for_solver(backbone.scheduler, solver)
    return LatentBackbone(unet, backbone.vae, config, backbone.text_encoder, backbone.tokenizer)


def widened(backbone: Backbone, extra: int, name: str, example: str) -> LatentBackbone:
    """Return a latent model whose UNet takes `extra` channels more than the latents, itself if it does so already.

    Raises:
        UsageError: a model of pixels, one that reads no text, or one with other extra channels.
    """
    if not isinstance(backbone, LatentBackbone) or backbone.text_encoder is None:
        kind = "a model that reads no text" if isinstance(backbone, LatentBackbone) else "a model of pixels"
        raise UsageError(f"{name} needs a latent model that reads text, this backbone is {kind}: choose backbone={example}")
    if backbone.extra_channels not in (0, extra):
        channels, latents = backbone.unet.config.in_channels, backbone.sample_shape[0]
        raise UsageError(
            f"{name} needs a UNet of {latents} or {latents + extra} input channels, this backbone's has {channels}: "
            f"choose backbone={example}"
        )
    if backbone.extra_channels == 0:
        widen_conv_in(backbone.unet, backbone.sample_shape[0] + extra).requires_grad_(False)
    return backbone
