"""Training the style model of DiffStyler: a model of pixels that goes on learning from pictures in styles."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.latent import LatentBackbone
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.losses.clip_direction import TextImageEncoder
from editkit.losses.perceptual import FeatureStages
from editkit.methods.weakly_supervised.diffstyler.editor import DiffStylerEditor
from editkit.methods.weakly_supervised.diffstyler.process import Critic, Weights, start_named
from editkit.training.denoising import denoising_error
from editkit.training.method import Artefact, Method, OptimizerFactory, SchedulerFactory
from editkit.training.one_file import take

KIND = "style-model"
GRID = 16  # samples shown while training


class DiffStyler(Method):
    """Fine-tune a style model on pictures alone, and stylise with it and the content model; items hold image.

    The authors train nothing, and use a published model of paintings; so does a recipe that names one as `style`.

    Args:
        backbone: the content model, of pixels; it stays as it is.
        style: the model to go on from, or to use as it is; None begins with the content model's weights.
        clip: makes the CLIP of the text loss.
        features: makes the network of the content loss.
        steps, content_share, style_share, scale, interval, solver: of an edit, see `DiffStylerEditor`.
        start, depth: see `start_named`.
        clip_weight, content_weight, smooth_weight, lpips_weight: see `Weights`.
        crops, smallest: see `Critic`.

    Raises:
        UsageError: a model of latents, two models that share no schedule or size, or a start that cannot be.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        clip: Callable[[], TextImageEncoder],
        features: Callable[[], FeatureStages],
        style: Backbone | None = None,
        steps: int = 50,
        content_share: float = 0.8,
        style_share: float = 0.2,
        scale: float = 3.0,
        start: str = "ode",
        depth: float | None = None,
        solver: str = "plms",
        interval: Sequence[float] | None = None,
        clip_weight: float = 500.0,
        content_weight: float = 3.0,
        smooth_weight: float = 0.0,
        lpips_weight: float = 0.0,
        crops: int = 1,
        smallest: float = 0.875,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.backbone, self.published = backbone, style is not None
        self.style = copy.deepcopy(backbone) if style is None else style
        check_pair(self.backbone, self.style)
        self.make_clip, self.make_features = clip, features
        self.start = start_named(start, solver, depth)
        self.weights = Weights(clip_weight, content_weight, smooth_weight, lpips_weight)
        self.cropping = {"crops": crops, "smallest": smallest}
        self.sampling: dict[str, Any] = {"steps": steps, "content_share": content_share, "style_share": style_share}
        self.sampling |= {"scale": scale, "solver": solver, "interval": tuple(interval) if interval else None}

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of the style model's network."""
        return {"style": self.style.unet.parameters()}  # type: ignore[union-attr,operator]

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the style model's error per image, (B,), without a text."""
        return {"denoise": denoising_error(self.style, batch["image"], None)}

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Return samples of the style model from fixed noise, (16, 3, H, W)."""
        keys = [str(k) for k in range(GRID)]
        noise = batch_noise(self.style.sample_shape, keys, seed=0, purpose="grid", device=self.device)
        return sample(self.style, noise, self.style.levels(min(30, self.sampling["steps"]))).clamp(-1, 1)

    def artefacts(self) -> list[Artefact]:
        """Return the style model, in half precision."""
        return [artefact.halved() for artefact in super().artefacts()]

    def card(self) -> dict[str, Any]:
        """Return what an exported file says about itself."""
        return {**super().card(), "kind": KIND}

    def dummy_batch(self) -> dict[str, Any]:
        """Return two images of noise."""
        images = torch.rand(2, *self.backbone.sample_shape, device=self.device) * 2 - 1
        return {"image": images, "key": ["dummy/0", "dummy/1"]}

    # Editing.

    @property
    def needs_trained(self) -> bool:
        """Return False where a published style model is at hand."""
        return not self.published

    def editor(self, artefacts: Sequence[Artefact]) -> DiffStylerEditor:
        """Return what stylises with a trained style model, or the given one.

        Raises:
            UsageError, UserError: several files, or one that is no style model of this layout.
        """
        take(self, artefacts, KIND, DiffStylerEditor.name)
        clip, features = (make().to(self.backbone.device) for make in (self.make_clip, self.make_features))  # type: ignore[attr-defined]
        critic = Critic(clip, features, self.weights, **self.cropping)  # type: ignore[arg-type]
        return DiffStylerEditor(self.backbone, self.style, critic, self.start, **self.sampling)


def check_pair(content: Backbone, style: Backbone) -> None:
    """Raise UsageError unless two models diffuse pictures of one size in one way."""
    if isinstance(content, LatentBackbone) or isinstance(style, LatentBackbone):
        raise UsageError("diffstyler needs models of pixels: choose backbone=toy_faces, cc12m_1_cfg or an ADM")
    if content.sample_shape != style.sample_shape:
        sizes = f"{content.sample_shape[1:]} and {style.sample_shape[1:]}"
        raise UsageError(f"method.style and the backbone are of pictures of different sizes, {sizes}")
    if not torch.equal(content.schedule.table, style.schedule.table):
        raise UsageError("method.style and the backbone have different noise schedules: their steps cannot be mixed")
