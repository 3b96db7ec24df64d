"""Stylising: start from the inverted picture, come down with both models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import ClassifierFree, Energy, Guided
from editkit.engine.invert import Inverter, replay
from editkit.engine.lanes import stack
from editkit.engine.rng import level_noise
from editkit.engine.sample import Noise, sample
from editkit.engine.solvers import SOLVERS
from editkit.engine.trajectory import Trajectory
from editkit.methods.weakly_supervised.diffstyler.process import Critic, Dual
from editkit.training.editor import Editor, draws_of, images_of
from editkit.types import Condition, EditRequest, EditResult


class DiffStylerEditor(Editor):
    """Draws a picture anew in the style that a text asks for.

    A request's strength moves share from the content model to the style model: 0 has the content model alone, 1 the shares as
    given, their sum stays. Its seed and sample number choose the crops that CLIP sees, and the noise of starts that draw some.

    Args:
        content: the model that pictures are inverted with; one that reads text is given the prompt.
        style: the model of pictures in styles, which the losses guide, asked without a text.
        critic: the losses.
        start: how to come to what the walk begins with.
        solver: of the way down.
        steps: network queries on each way, unless a request says otherwise.
        content_share, style_share: of the two models' v in each step.
        scale: classifier-free guidance of the content model; without effect where no text is read.
        interval: (lowest, highest) time at which the losses guide; None is always.
    """

    name = "diffstyler"
    needs = ("image", "prompt")

    def __init__(
        self,
        content: Backbone,
        style: Backbone,
        critic: Critic,
        start: Inverter,
        *,
        solver: str,
        steps: int,
        content_share: float,
        style_share: float,
        scale: float,
        interval: tuple[float, float] | None = None,
    ) -> None:
        self.content, self.style, self.critic, self.start = content, style, critic, start
        self.step, self.steps, self.scale, self.interval = SOLVERS[solver].step, steps, scale, interval
        self.shares = content_share, style_share

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Trajectory:
        """Return what the walk starts from, by the content model without a text."""
        images = images_of(requests).to(self.content.device)
        levels = self.content.inversion_levels(requests[0].steps or self.steps)
        return self.start.invert(self.content, images, levels, self._untold(requests), noise=self._noise(requests))

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Trajectory | None = None) -> EditResult:
        """Return the stylised pictures; `state` is what `prepare` returned for these requests (None: prepare now)."""
        state = state or self.prepare(requests)
        cond, uncond = self._condition(requests), self._untold(requests)
        scale = 1.0 if cond is None else self.scale
        content = Guided(self.content, ClassifierFree(scale, uncond))
        shares = self._shares(requests)
        dual = Dual(content, self._guided(requests) if shares[1].any() else self.style, *shares)
        images = sample(dual, cond=cond, **(replay(state) | {"step": self.step}))
        down = (1 if scale in (0, 1) else 2) + (shares[1] != 0).double()
        calls = state.calls + state.start * down
        return EditResult(images.clamp(-1, 1), scores={"network_calls": calls.tolist()})

    def _shares(self, requests: Sequence[EditRequest]) -> tuple[Tensor, Tensor]:
        content, style = self.shares
        moved = torch.tensor([style if one.strength is None else one.strength * style for one in requests], dtype=torch.float64)
        return content + style - moved, moved

    def _guided(self, requests: Sequence[EditRequest]) -> Denoiser:
        """Return the style model under the losses' gradient, which passes through it: v + dL/dx s / a."""
        if not self.critic.weights.any():
            return self.style
        energy = self.critic.energy(requests, images_of(requests).to(self.content.device))
        return Guided(self.style, Energy(energy, 1.0, self.interval))

    def _condition(self, requests: Sequence[EditRequest]) -> Condition | None:
        return stack([self.content.condition(request) for request in requests], [1] * len(requests))

    def _untold(self, requests: Sequence[EditRequest]) -> Condition | None:
        return self._condition([request.with_(prompt="") for request in requests])

    def _noise(self, requests: Sequence[EditRequest]) -> Noise:
        own = draws_of(requests) | {"device": self.content.device}
        return level_noise(self.content.sample_shape, purpose="diffstyler/start", **own)
