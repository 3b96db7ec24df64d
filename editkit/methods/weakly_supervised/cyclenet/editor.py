"""Editing with CycleNet: noise the image part of the way and come back, the ControlNet told what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from editkit.backbones.attention import constant_text
from editkit.backbones.controlnet import Controlled
from editkit.backbones.latent import Residuals
from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.guidance import ClassifierFree
from editkit.engine.invert import SDEdit
from editkit.engine.lanes import evaluate, select
from editkit.engine.rng import level_noise
from editkit.engine.sample import Noise, sample
from editkit.engine.steps import ddim
from editkit.engine.trajectory import Trajectory
from editkit.methods.weakly_supervised.cyclenet.terms import told
from editkit.training.editor import Editor, draws_of, grouped, images_of
from editkit.types import Condition, EditRequest, EditResult, Levels, Prediction


@dataclass(frozen=True)
class Steered(Wrapper):
    """Guidance from the source text to the target text, both with the image and the source text in the ControlNet.

    That is the same for both branches, so one pass of it serves them.

    Attributes:
        denoiser: the trained networks.
        source: source tokens, of the negative branch too, and the hint.
        scale: of the guidance.
    """

    denoiser: Controlled
    source: Condition
    scale: float

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict from latents x (B, C, h, w); `cond` holds the target's tokens."""
        guidance = ClassifierFree(self.scale, Condition(tokens=self.source.tokens))
        lanes = [(x, t, branch) for branch in guidance.branches(cond, t)]
        control = repeated(self.denoiser.residuals(x, t, self.source), len(lanes))
        backbone = cast(Denoiser, partial(self.denoiser.backbone, residuals=control))
        return guidance.combine(x, t, evaluate(backbone, lanes), self.schedule)


@dataclass(frozen=True)
class Told:
    """What serves all strengths of a batch of requests.

    Attributes:
        latents: of the images, (B, C, h, w).
        source: source tokens and, for the ControlNet, the same with the images.
        target: target tokens.
    """

    latents: Tensor
    source: Condition
    target: Condition


class CycleNetEditor(Editor):
    """Translates images: noised to a level, denoised from that level on under the target text.

    A request's strength is the share of the steps that are walked: 0 gives the image back as the autoencoder has it.

    Args:
        network: the trained networks; its scale is the control's strength.
        steps: DDIM steps from full noise, unless a request says otherwise.
        strength: of requests that name none.
        eta: noise that the steps add, 1 as in the paper.
        scale: guidance from the source text to the target text.
        parity: noise the image one level above the one where denoising starts, as the released demo does.
    """

    name = "cyclenet"
    needs = ("image", "source_prompt", "prompt")

    def __init__(
        self,
        network: Controlled,
        *,
        steps: int = 100,
        strength: float = 0.5,
        eta: float = 1.0,
        scale: float = 9.0,
        parity: bool = False,
    ) -> None:
        self.network, self.steps, self.strength = network, steps, strength
        self.eta, self.scale, self.parity = eta, scale, parity

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Told:
        """Encode images and texts."""
        backbone = self.network.backbone
        images = images_of(requests).to(backbone.device)
        source = backbone.tokens([request.source_prompt or "" for request in requests])
        target = backbone.tokens([request.prompt or "" for request in requests])
        return Told(backbone.encode(images), told(source, source, images / 2 + 0.5), Condition(tokens=target))

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Told) -> EditResult:
        """Return the translated images; requests of the same steps and strength are one batch."""
        latents, calls = state.latents.clone(), [0.0] * len(requests)
        settings = [(r.steps or self.steps, self.strength if r.strength is None else r.strength) for r in requests]
        for (steps, strength), rows in grouped(settings):
            chosen = torch.tensor(rows)
            source, target = select(state.source, chosen), select(state.target, chosen)
            some = [requests[row] for row in rows]
            levels = self.network.backbone.levels(steps)  # of Stable Diffusion: the released code's
            shape = state.latents.shape[1:]
            start = self._start(state.latents[rows], levels, strength, self._noise(some, shape, "start"))
            steered = Steered(self.network, cast(Condition, source), self.scale)
            with constant_text(self.network):
                latents[rows] = sample(
                    steered,
                    start.x,
                    levels,
                    target,
                    start=start.start,
                    step=partial(ddim, eta=self.eta),
                    noise=self._noise(some, shape, "step") if self.eta else None,
                )
            for row in rows:
                calls[row] = float(start.start * (1 if self.scale in (0, 1) else 2))
        images = self.network.backbone.decode(latents).clamp(-1, 1)
        return EditResult(images, scores={"network_calls": calls})

    def _start(self, latents: Tensor, levels: Levels, strength: float, noise: Noise) -> Trajectory:
        """Return the noised latents and the level where denoising starts, which is theirs unless `parity`."""
        exact = SDEdit(strength).invert(self.network, latents, levels, noise=noise)
        if not self.parity or exact.start == 0:
            return exact
        start = min(exact.start, len(levels) - 2)
        above = levels.signal(start + 1) * latents + levels.noise(start + 1) * cast(Tensor, noise(start + 1))
        return replace(exact, start=start, states={start: above})

    def _noise(self, requests: Sequence[EditRequest], shape: Sequence[int], purpose: str) -> Noise:
        return level_noise(
            shape,
            **draws_of(requests),
            purpose=f"{self.name}/{purpose}",
            device=self.network.backbone.device,
        )


def repeated(control: Residuals | None, times: int) -> Residuals | None:
    """Return residuals of a batch for as many copies of it."""
    if control is None or times == 1:
        return control
    down = [part.repeat(times, 1, 1, 1) for part in control.down]
    return Residuals(down, control.mid.repeat(times, 1, 1, 1))
