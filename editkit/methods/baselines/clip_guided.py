"""CLIP-guided sampling: go back from the inverted noise while the predicted image is pushed along the captions' direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.guidance import Energy
from editkit.engine.invert import Inverter, replay
from editkit.engine.sample import sample
from editkit.engine.trajectory import Trajectory
from editkit.losses.clip_direction import DirectionalClip, TextImageEncoder
from editkit.training.editor import images_of
from editkit.training.method import Artefact, Editor, Method
from editkit.types import EditRequest, EditResult


class ClipGuidedEditor(Editor):
    """Invert an image, then sample back under eps += scale s d(1 - cos(dI, dT))/dx, with dI taken at the predicted x0.

    A request's strength multiplies the scale.

    Args:
        backbone: the diffusion model, unconditional.
        guidance: from an energy and a scale to the guidance, e.g. a partial of `Energy`.
        clip: the critic.
        inverter: how to go up, deterministic; None as in `Inversion`.
        steps: noise levels, unless a request says otherwise.
        scale: guidance strength.
        source_prompt: what images show, unless a request says otherwise.
    """

    name = "clip-guided"
    needs = ("image", "prompt")

    def __init__(
        self,
        backbone: Backbone,
        guidance: Callable[..., Energy],
        clip: TextImageEncoder,
        inverter: Inverter | None,
        *,
        steps: int,
        scale: float,
        source_prompt: str,
    ) -> None:
        self.backbone, self.guidance, self.clip, self.inversion = backbone, guidance, clip, Inversion(backbone, inverter)
        self.steps, self.scale, self.source_prompt = steps, scale, source_prompt
        self.cache: InversionCache | None = None

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Trajectory:
        """Return the inversion of the images."""
        latents = self.backbone.encode(self._images(requests))
        levels = self.backbone.levels(requests[0].steps or self.steps)
        return self.inversion(latents, levels, self.cache)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Trajectory) -> EditResult:
        """Return the guided images."""
        strength = 1.0 if requests[0].strength is None else requests[0].strength
        guidance = self.guidance(self._energy(requests), self.scale * strength)
        latents = sample(self.backbone, guidance=guidance, **replay(state))
        calls = float(state.calls + state.start)
        return EditResult(self.backbone.decode(latents), scores={"network_calls": [calls] * len(requests)})

    def _energy(self, requests: Sequence[EditRequest]) -> Callable[[Tensor, float | Tensor], Tensor]:
        """Return (x0, t) -> 1 - cos(dI, dT) per image, each with its own captions."""
        texts = [(request.source_prompt or self.source_prompt, request.prompt or "") for request in requests]
        sources = self.clip.image(self._images(requests))
        groups = []
        for pair in dict.fromkeys(texts):
            rows = torch.tensor([row for row, own in enumerate(texts) if own == pair], device=sources.device)
            groups.append((rows, DirectionalClip(self.clip, *pair).to(sources.device)))

        def energy(x0: Tensor, t: float | Tensor) -> Tensor:
            images = self.backbone.decode(x0)
            values = images.new_zeros(len(images))
            for rows, loss in groups:
                values = values.index_add(0, rows, loss(images[rows], sources[rows]))
            return values

        return energy

    def _images(self, requests: Sequence[EditRequest]) -> Tensor:
        return images_of(requests).to(self.backbone.device)


class ClipGuided(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: the diffusion model, unconditional.
        clip: makes the critic when editing begins.
        inverter: how to go up, deterministic; DDIM asked at the source level if not given.
        steps: noise levels.
        scale: guidance strength.
        interval: (lowest, highest) model time at which to guide; None is always.
        through_unet: differentiate through the network; False takes its noise estimate as constant, at about half the cost.
        source_prompt: what images show.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        clip: Callable[[], nn.Module],
        inverter: Inverter | None = None,
        steps: int = 40,
        scale: float = 30.0,
        interval: Sequence[float] | None = None,
        through_unet: bool = True,
        source_prompt: str = "a face",
    ) -> None:
        super().__init__()
        self.backbone, self.clip, self.inverter = backbone, clip, inverter
        self.steps, self.scale, self.source_prompt = steps, scale, source_prompt
        self.guidance = partial(Energy, interval=tuple(interval) if interval else None, through_unet=through_unet)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        clip = self.clip().to(self.backbone.device)
        options = {"steps": self.steps, "scale": self.scale, "source_prompt": self.source_prompt}
        return ClipGuidedEditor(self.backbone, self.guidance, clip, self.inverter, **options)  # type: ignore[arg-type]
