"""Inversion and the way back, with no edit in between: what a method loses before it begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from editkit.backbones.attention import constant_text
from editkit.backbones.base import Backbone
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.invert import Inverter, replay
from editkit.engine.lanes import stack
from editkit.engine.sample import sample
from editkit.engine.trajectory import Trajectory
from editkit.training.editor import images_of
from editkit.training.method import Artefact, Editor, Method
from editkit.types import Condition, EditRequest, EditResult


class ReconstructionEditor(Editor):
    """Invert an image and sample back from its noise.

    Args:
        backbone: the diffusion model.
        inverter: how to go up, deterministic; None as in `Inversion`.
        steps: noise levels, unless a request says otherwise.
    """

    name = "reconstruction"

    def __init__(self, backbone: Backbone, inverter: Inverter | None, steps: int) -> None:
        self.backbone, self.inversion, self.steps = backbone, Inversion(backbone, inverter), steps
        self.cache: InversionCache | None = None

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Trajectory:
        """Return the inversion of the images."""
        latents = self.backbone.encode(images_of(requests).to(self.backbone.device))
        levels = self.backbone.inversion_levels(requests[0].steps or self.steps)
        return self.inversion(latents, levels, self.cache, self._condition(requests))

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Trajectory) -> EditResult:
        """Return the images as they come back."""
        with count_calls(self.backbone, flops=False) as down, constant_text(self.backbone):
            latents = sample(self.backbone, cond=self._condition(requests), **replay(state))
        calls = float(state.calls + down.calls)
        return EditResult(self.backbone.decode(latents), scores={"network_calls": [calls] * len(requests)})

    def _condition(self, requests: Sequence[EditRequest]) -> Condition | None:
        told = [self.backbone.condition(request.with_(prompt=request.source_prompt)) for request in requests]
        return stack(told, [1] * len(requests))


class Reconstruction(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: the diffusion model.
        inverter: how to go up, deterministic; DDIM asked at the source level if not given.
        steps: noise levels.
    """

    def __init__(self, *, backbone: Backbone, inverter: Inverter | None = None, steps: int = 40) -> None:
        super().__init__()
        self.backbone, self.inverter, self.steps = backbone, inverter, steps

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        return ReconstructionEditor(self.backbone, self.inverter, self.steps)
