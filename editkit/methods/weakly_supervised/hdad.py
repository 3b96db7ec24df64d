"""HDAE: Hierarchical Diffusion Autoencoders and Disentangled Image Manipulation (Lu et al., WACV 2024, arXiv 2304.11829).

A code for every resolution of the UNet, and directions of attributes cut down to their largest coordinates. No code was
published, and we could read the paper's abstract alone: sizes, blocks and the length of a truncated step are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.diffae import DiffAEBackbone, stages_before, take_encoder
from editkit.backbones.hdae import HDAEBackbone, HierarchicalAutoencoder, StartedLevels, begin_hdae, warm_hdae
from editkit.backbones.semantic_codes import AttributeClassifier
from editkit.errors import UsageError, suggestion
from editkit.training.autoencoder_training import AutoencoderTraining
from editkit.training.code_editing import CodeEditing
from editkit.training.code_editor import CodeEditor
from editkit.training.encoder_start import EncoderStart as OneCodeStart
from editkit.training.encoder_start import LevelDrawing
from editkit.training.folder import network_arguments
from editkit.training.method import OptimizerFactory, SchedulerFactory
from editkit.training.over_codes import Classifier as OverCodesClassifier
from editkit.training.over_codes import Prior as OverCodesPrior

__all__ = ["HDAE", "Autoencoder", "Classifier", "EncoderStart", "HDAEEditor", "Prior"]


class EncoderStart(OneCodeStart):
    """Train an encoder of levels before any decoder reads it; each code is drawn from at its own side, and made white."""

    started = StartedLevels

    def reader(self) -> nn.Module:
        """Return the network that draws pictures from codes in one pass."""
        own = self.start.config
        return LevelDrawing(own["sample_size"], own["code"], own["levels"])


class Autoencoder(AutoencoderTraining):
    """Train a hierarchical diffusion autoencoder; its export is a folder for `load_hdae`.

    Args:
        network: arguments of `HierarchicalAutoencoder`; with `init_from` those of `begin_hdae`; not read with `warm_from`.
        init_from: pixel model to start from, or a trained HDAE to go on with.
        warm_from: diffusion autoencoder to start from.
        encoder_from: export of `EncoderStart` whose encoder it starts with; None starts it as published.
        variant: of the encoder, "E" or "U".
        flipped, sample_steps, encoder_rate, reading_rate: see `AutoencoderTraining`.

    Raises:
        UsageError: two networks or two encoders to start from, or an encoder of another shape.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any] | None = None,
        init_from: str | None = None,
        warm_from: str | None = None,
        encoder_from: str | None = None,
        variant: str = "U",
        flipped: float = 0.5,
        sample_steps: int = 20,
        encoder_rate: float = 1.0,
        reading_rate: float = 1.0,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        arguments = network_arguments(network or {})
        if init_from is not None and warm_from is not None:
            raise UsageError("method.init_from and method.warm_from are two networks to start from: set one of them to null")
        if warm_from is not None:
            net = warm_hdae(warm_from, variant=variant)
        elif init_from is not None:
            net = begin_hdae(init_from, variant=variant, **arguments)
        else:
            net = HierarchicalAutoencoder(variant=variant, **arguments)
        if encoder_from is not None:
            take_encoder(net, encoder_from, warm_from or init_from)
        rates = {"encoder_rate": encoder_rate, "reading_rate": reading_rate}
        factories: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
        earlier = stages_before(net, encoder_from, init_from)
        super().__init__(HDAEBackbone(net), flipped, sample_steps, earlier=earlier, **rates, **factories)


class Classifier(OverCodesClassifier):
    """One linear layer over all normalised codes together, so that truncation chooses among them."""


class Prior(OverCodesPrior):
    """A latent DDIM of all codes together."""


class HDAEEditor(CodeEditor):
    """Moves the codes along truncated directions, or those of chosen levels towards references.

    Args:
        backbone: the hierarchical diffusion autoencoder.
        classifier: whose rows are the directions of attributes.
        keep: share of the allowed coordinates that a direction keeps, those with the largest weights.
        levels: codes that an attribute may move, by the names of `HDAEBackbone.parts`; None allows all.
        renorm: a step changes the kept coordinates by `step` (RMS); False cuts the untruncated step down instead.
        editing: further arguments of `CodeEditor`; its `moves` are names of levels too.

    Raises:
        UsageError: an unknown level, or `keep` outside 0 to 1.
    """

    name = "hdad"

    def __init__(
        self,
        backbone: DiffAEBackbone,
        classifier: AttributeClassifier | None = None,
        *,
        keep: float = 0.1,
        levels: Sequence[str | int] | None = None,
        renorm: bool = True,
        **editing: Any,
    ) -> None:
        super().__init__(backbone, classifier, **editing)
        if not 0 < keep <= 1:
            raise UsageError(f"method.keep={keep} is out of range; give a share of the coordinates, above 0 and up to 1")
        self.keep, self.renorm = keep, renorm
        self.allowed = torch.zeros(backbone.code_width, dtype=torch.bool)
        for name in map(str, backbone.parts if levels is None else levels):
            if name not in backbone.parts:
                known = ", ".join(backbone.parts)
                raise UsageError(
                    f"there is no level {name} (method.levels).{suggestion(name, backbone.parts)} There are: {known}"
                )
            self.allowed[backbone.parts[name]] = True

    def moved(self, classifier: AttributeClassifier, codes: Tensor, wanted: Mapping[str, float], step: float) -> Tensor:
        """Return codes (B, levels dim) moved along truncated directions; coordinates that these lack are left bit for bit."""
        change = torch.zeros(codes.shape[1], dtype=torch.float64, device=codes.device)
        for name, weight in wanted.items():
            row = classifier.linear.weight[classifier.attributes.index(name)].double()
            change += weight * step * truncated(row, self.allowed.to(row.device), self.keep, renorm=self.renorm)
        return torch.where(change == 0, codes, (codes.double() + change * classifier.scale.std).to(codes.dtype))


def truncated(row: Tensor, allowed: Tensor, keep: float, *, renorm: bool = True) -> Tensor:
    """Return a classifier's row (dim,) with its largest weights alone, as what strength 1 adds to a normalised code.

    Args:
        allowed: (dim,) bool, coordinates to choose from, all levels together.
        keep: share of those that is kept, rounded up.
        renorm: scale what is left to sqrt(kept), an RMS of 1 over the kept coordinates; False scales the whole row to sqrt(dim)
            first.
    """
    kept = max(1, math.ceil(keep * int(allowed.sum()) - 1e-9))
    size = torch.where(allowed, row.abs(), -1.0)
    mask = torch.zeros_like(row).scatter(0, size.topk(kept).indices, 1.0)
    left = row * mask
    return left / left.norm() * kept**0.5 if renorm else left / row.norm() * len(row) ** 0.5


class HDAE(CodeEditing):
    """Edits with a trained hierarchical diffusion autoencoder and its classifier of attributes.

    Args:
        backbone: the hierarchical diffusion autoencoder.
        keep, levels, renorm: see `HDAEEditor`.
        editing: further arguments of `CodeEditing`.

    Raises:
        UsageError: another backbone.
    """

    editing_by = HDAEEditor

    def __init__(
        self,
        *,
        backbone: Backbone,
        keep: float = 0.1,
        levels: Sequence[str | int] | None = None,
        renorm: bool = True,
        **editing: Any,
    ) -> None:
        if not isinstance(backbone, HDAEBackbone):
            raise UsageError("hdad needs a hierarchical diffusion autoencoder as its backbone: choose backbone=toy_hdae")
        super().__init__(backbone=backbone, **editing)
        self.editing |= {"keep": keep, "levels": levels, "renorm": renorm}
