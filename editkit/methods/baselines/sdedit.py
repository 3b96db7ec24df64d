"""SDEdit: add noise to an image and denoise it under the target's condition (Meng et al., arXiv 2108.01073)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from editkit.backbones.attention import constant_text
from editkit.backbones.base import Backbone
from editkit.engine.guidance import ClassifierFree
from editkit.engine.invert import SDEdit, replay
from editkit.engine.lanes import stack
from editkit.engine.rng import level_noise
from editkit.engine.sample import sample
from editkit.engine.trajectory import Trajectory
from editkit.training.editor import draws_of, images_of
from editkit.training.method import Artefact, Editor, Method
from editkit.types import Condition, EditRequest, EditResult


class SDEditEditor(Editor):
    """Noise an image part of the way up and sample back under the prompt.

    A backbone that reads no text only draws the image anew: more like its training images, and otherwise at random.

    Args:
        backbone: the diffusion model.
        steps: noise levels from clean to full noise, unless a request says otherwise.
        noising: share of the levels that are redone, 0 to 1.
        scale: classifier-free guidance towards the prompt; without effect where no text is read.
    """

    name = "sdedit"

    def __init__(self, backbone: Backbone, *, steps: int, noising: float, scale: float) -> None:
        self.backbone, self.steps, self.scale = backbone, steps, scale
        self.inverter = SDEdit(strength=noising)

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Trajectory:
        """Return the noised images; their noise depends on each request's seed, key and sample alone."""
        device = self.backbone.device
        latents = self.backbone.encode(images_of(requests).to(device))
        levels = self.backbone.levels(requests[0].steps or self.steps)
        noise = level_noise(latents.shape[1:], **draws_of(requests), purpose="sdedit", device=device)
        return self.inverter.invert(self.backbone, latents, levels, noise=noise)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Trajectory) -> EditResult:
        """Return the images sampled back under their prompts."""
        cond, uncond = self._condition(requests), self._condition([request.with_(prompt="") for request in requests])
        scale = 1.0 if cond is None else self.scale
        with constant_text(self.backbone):
            latents = sample(self.backbone, cond=cond, guidance=ClassifierFree(scale, uncond), **replay(state))
        calls = float(state.start * (1 if scale in (0, 1) else 2))
        return EditResult(self.backbone.decode(latents), scores={"network_calls": [calls] * len(requests)})

    def _condition(self, requests: Sequence[EditRequest]) -> Condition | None:
        return stack([self.backbone.condition(request) for request in requests], [1] * len(requests))


class NoisedStart(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: the diffusion model.
        steps: noise levels from clean to full noise.
        noising: share of the levels that are redone, 0 to 1.
        scale: classifier-free guidance towards the prompt.
    """

    def __init__(self, *, backbone: Backbone, steps: int = 40, noising: float = 0.5, scale: float = 7.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.settings = {"steps": steps, "noising": noising, "scale": scale}

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        return SDEditEditor(self.backbone, **self.settings)  # type: ignore[arg-type]
