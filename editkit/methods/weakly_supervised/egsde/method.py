"""Training EGSDE's classifier of noised images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.pixel import PixelBackbone
from editkit.data.items import check_holds
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.egsde.editor import EGSDEEditor
from editkit.networks.noisy_classifier import NoisyClassifier
from editkit.training.denoising import drawn_times
from editkit.training.editor import images_of, requests_of
from editkit.training.folder import network_arguments
from editkit.training.method import Artefact, Method, OptimizerFactory, SchedulerFactory
from editkit.training.one_file import take

KIND = "noisy-classifier"
SHOWN = 8  # translations of a sample grid
DATA = "choose data=animals, or data=domain_folders with data.root=DIR"


class EGSDE(Method):
    """Train a classifier that tells noised images of some domains apart, and translate with it; items hold image and domain.

    The diffusion model of the target domain is given, and stays as it is. Departures from the released code: noise is one
    stream an image (the released code draws a batch's together), times are stratified, and the classifier may begin from a
    diffusion model's own encoder, where the code takes a classifier of ImageNet.

    Args:
        backbone: a model of pixels, of the target domain alone.
        classifier: arguments of `NoisyClassifier`'s network; None takes the backbone's, with its weights to begin with.
        domains: names of the domains, in the data's order.
        steps, strength, realism, faithfulness, factor, repeats, shared_noise, clip: of an edit, see `EGSDEEditor`.

    Raises:
        UsageError: a model of latents, or fewer than two domains.
    """

    kind = KIND

    def __init__(
        self,
        *,
        backbone: Backbone,
        classifier: Mapping[str, Any] | None = None,
        domains: Sequence[str] = ("source", "target"),
        steps: int = 500,
        strength: float = 0.5,
        realism: float = 500.0,
        faithfulness: float = 2.0,
        factor: int = 32,
        repeats: int = 1,
        shared_noise: bool = True,
        clip: bool = False,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not isinstance(backbone, PixelBackbone):
            raise UsageError("egsde needs a model of pixels of the target domain: choose backbone=toy_dogs or ilvr_afhq_dog256")
        if len(domains) < 2:
            raise UsageError(f"method.domains={list(domains)}: the classifier tells two domains apart or more")
        self.backbone, self.domains = backbone, tuple(domains)
        self.classifier = NoisyClassifier(_network(classifier, backbone.unet), len(self.domains))
        self.begun_from_backbone = classifier is None
        self.sampling: dict[str, Any] = {"steps": steps, "strength": strength, "realism": realism, "faithfulness": faithfulness}
        self.sampling |= {"factor": factor, "repeats": repeats, "shared_noise": shared_noise, "clip": clip}
        EGSDEEditor(backbone, self.classifier.features, **self.sampling)
        self.preview: list[Any] = []

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the classifier's parameters."""
        return {"classifier": self.classifier.parameters()}

    def prepare_training(self) -> None:
        """Begin the classifier from the backbone's encoder, unless it has a layout of its own."""
        if self.begun_from_backbone:
            self.classifier.begin_from(self.backbone.unet)

    def precompute(self, dataset: Any) -> None:
        """Keep a few images for the sample grid.

        Raises:
            UsageError: data without domains.
        """
        check_holds(dataset[0], ("image", "domain"), "egsde", DATA)
        self.preview = requests_of(dataset, SHOWN)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the classifier's cross entropy for each noised image, (B,)."""
        x0, schedule = batch["image"], self.backbone.schedule
        labels = torch.as_tensor(batch["domain"], device=x0.device)
        t = drawn_times(len(x0), len(schedule), x0.device)
        logits = self.classifier(schedule.add_noise(x0, t, torch.randn_like(x0)), t)
        return {"domain": F.cross_entropy(logits.float(), labels, reduction="none")}

    def sample_grid(self) -> Tensor | None:
        """Return some training images and their translations, (N, 2, 3, H, W)."""
        if not self.preview:
            return None
        settings = self.sampling | {"steps": min(self.sampling["steps"], 50)}
        editor = EGSDEEditor(self.backbone, self.classifier.features, **settings)
        return torch.stack([images_of(self.preview), editor.edit(self.preview).images.cpu()], 1)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two images of noise, of two domains."""
        images = torch.rand(2, *self.backbone.sample_shape, device=self.device) * 2 - 1
        return {"image": images, "domain": [0, 1], "key": ["dummy/0", "dummy/1"]}

    def artefacts(self) -> list[Artefact]:
        """Return the classifier, in half precision."""
        return [artefact.halved() for artefact in super().artefacts()]

    def card(self) -> dict[str, Any]:
        """Return what an exported file says about itself."""
        return {**super().card(), "kind": KIND, "domains": list(self.domains)}

    # Editing.

    def editor(self, artefacts: Sequence[Artefact]) -> EGSDEEditor:
        """Return what translates with a trained classifier.

        Raises:
            UsageError, UserError: several files, or one that is no classifier of this layout.
        """
        take(self, artefacts, KIND, EGSDEEditor.name)
        return EGSDEEditor(self.backbone, self.classifier.features, **self.sampling)


def _network(classifier: Mapping[str, Any] | None, unet: UNet2DModel) -> dict[str, Any]:
    """Return arguments of a UNet2DModel: those given, or the backbone's own."""
    if classifier is not None:
        return network_arguments(classifier)
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}
