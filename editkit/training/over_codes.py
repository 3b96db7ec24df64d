"""The later stages, over the codes of a trained encoder: how codes are distributed, and which directions attributes have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.diffae import DiffAEBackbone
from editkit.backbones.semantic_codes import AttributeClassifier, LatentDDIM
from editkit.data.attributes import Claim, example, holds
from editkit.errors import UsageError
from editkit.training.denoising import check_share, mirrored
from editkit.training.folder import FolderMethod, network_arguments
from editkit.training.method import OptimizerFactory, SchedulerFactory
from editkit.training.share import computed_once
from editkit.training.update import Update


class OverCodes(FolderMethod):
    """Base of the two: a network over normalised codes of a frozen encoder, saved with the codes' mean and deviation.

    Args:
        backbone: the diffusion autoencoder; what lies in its folder is the average, so codes are those of the averaged encoder.
        net: with a `scale`.
    """

    def __init__(self, backbone: Backbone, net: LatentDDIM | AttributeClassifier, **factories: Any) -> None:
        super().__init__(**factories)
        self.backbone, self.net = semantic(backbone), net

    def trained_state(self) -> dict[str, Tensor]:
        """Return what is trained, with the codes' mean and deviation."""
        scale = {f"net.scale.{name}": tensor for name, tensor in self.net.scale.state_dict().items()}
        return {**super().trained_state(), **scale}

    @torch.no_grad()
    def codes_of(self, dataset: Any) -> dict[str, Tensor]:
        """Return the code (dim,) of each image as it is, not mirrored, by its key, in the order of the keys."""
        rows = computed_once(dataset, lambda images, keys: {"code": self.backbone.semantic_code(images)})
        return {key: rows[key]["code"].to(self.device) for key in sorted(rows)}

    def measure(self, codes: Tensor) -> None:
        """Keep the mean and the unbiased standard deviation of codes (N, dim)."""
        self.net.scale.mean.copy_(codes.mean(0))
        self.net.scale.std.copy_(codes.std(0).clamp(min=1e-6))

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        self.net.save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images."""
        images = torch.rand(2, *self.backbone.sample_shape, device=self.device) * 2 - 1
        return {"image": images, "key": ["dummy/0", "dummy/1"]}


class Prior(OverCodes):
    """Train the latent DDIM (section 4): L1 error of the noise, the same amount of it at all times.

    The pictures of a batch only set the pace: a step learns from codes drawn among all of the training set, which are computed
    once.

    Args:
        backbone: the diffusion autoencoder.
        network: arguments of `SkipMLP`, without `dim`.
        codes: codes of a step for each picture of its batch.
    """

    net: LatentDDIM

    def __init__(
        self,
        *,
        backbone: Backbone,
        network: Mapping[str, Any] | None = None,
        codes: int = 16,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        net = LatentDDIM(dim=semantic(backbone).code_width, **network_arguments(network or {}))
        super().__init__(backbone, net, optimizer=optimizer, scheduler=scheduler)
        self.codes = codes
        self.table = torch.empty(0)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the latent network."""
        return {"prior": self.net.parameters()}

    def precompute(self, dataset: Any) -> None:
        """Compute all codes, and keep them normalised."""
        codes = torch.stack([*self.codes_of(dataset).values()])
        self.measure(codes)
        self.table = self.net.scale.normalize(codes)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the mean absolute error of the noise, (B,)."""
        pictures = len(batch["image"])
        count = self.codes * pictures
        clean = self.table[torch.randint(len(self.table), (count,), device=self.table.device)]
        t = torch.randint(len(self.net.schedule), (count,), device=clean.device)
        noise = torch.randn_like(clean)
        guess = self.net.network(self.net.schedule.add_noise(clean, t, noise), t).float()
        return {"noise": (guess - noise).abs().view(self.codes, pictures, -1).mean((0, 2))}


class Classifier(OverCodes):
    """Train one linear layer over normalised codes to tell attributes (section 5.2); its rows become the directions of edits.

    Args:
        backbone: the diffusion autoencoder.
        attributes: names, each a factor of the items that is true or above 0; or {name: {factor: values}}, what is true of an
            item that has one of the values for every factor.
        latent: a trained `Prior`, whose mean and deviation of the codes are taken over: those of the pictures that the
            autoencoder was trained on. None computes them from the pictures here.
        flipped: share of the images that are mirrored.
    """

    net: AttributeClassifier

    def __init__(
        self,
        *,
        backbone: Backbone,
        attributes: Sequence[str] | Mapping[str, Mapping[str, Claim]],
        latent: str | None = None,
        flipped: float = 0.5,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        width, parts = semantic(backbone).code_width, list(semantic(backbone).parts)
        net = AttributeClassifier(attributes=list(attributes), dim=width, parts=parts)
        super().__init__(backbone, net, optimizer=optimizer, scheduler=scheduler)
        self.claims = dict(attributes) if isinstance(attributes, Mapping) else {name: {name: None} for name in attributes}
        self.latent, self.flipped = latent, check_share("flipped", flipped)
        self.known: dict[str, Tensor] = {}

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the linear layer."""
        return {"classifier": self.net.linear.parameters()}

    def precompute(self, dataset: Any) -> None:
        """Take over or compute the codes' mean and deviation; codes of pictures that are never mirrored are computed once.

        Raises:
            UsageError: pictures of which an attribute is not known.
        """
        self.targets([dataset[0]["factors"]])
        codes = self.codes_of(dataset) if self.latent is None or not self.flipped else {}
        if not self.flipped:
            self.known = codes
        if self.latent is None:
            self.measure(torch.stack([*codes.values()]))
        else:
            self.net.scale.load_state_dict(LatentDDIM.load(self.latent).scale.state_dict())

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield the binary cross-entropy of each image, the mean over its attributes, (B,), with the share that is right."""
        codes = self.codes(batch)
        targets = self.targets(batch["factors"]).to(codes.device)
        logits = self.net(codes).float()
        error = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        yield Update("classifier", {"attributes": error}, {"accuracy": ((logits > 0) == (targets > 0)).float().mean()})

    @torch.no_grad()
    def codes(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the codes (B, dim) of a batch, some of whose images may be mirrored."""
        if self.known.keys() >= set(batch["key"]):
            return torch.stack([self.known[key] for key in batch["key"]])
        return self.backbone.semantic_code(mirrored(batch["image"], self.flipped))

    def targets(self, factors: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return which attributes images have, (B, K), 0 or 1.

        Raises:
            UsageError: a factor that is not known of them.
        """
        try:
            rows = [[float(holds(claims, one)) for claims in self.claims.values()] for one in factors]
        except KeyError as error:
            raise UsageError(
                f"these pictures do not say whether they have {error}: method.attributes names what their factors say "
                f"({', '.join(map(str, factors[0])) or 'nothing'})"
            ) from None
        return torch.tensor(rows)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images, of which all that is asked is known."""
        factors = {name: value for claims in self.claims.values() for name, value in example(claims).items()}
        return {**super().dummy_batch(), "factors": [factors, factors]}


def semantic(backbone: Backbone) -> DiffAEBackbone:
    """Return a backbone as it is.

    Raises:
        UsageError: it is no diffusion autoencoder.
    """
    if not isinstance(backbone, DiffAEBackbone):
        raise UsageError(
            "this needs a diffusion autoencoder as its backbone: choose backbone=toy_diffae or backbone=diffae_ffhq256"
        )
    return backbone
