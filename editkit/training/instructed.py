"""Editing by an instruction with a model that sees the image in further input channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.backbones.attention import constant_text
from editkit.backbones.inpainting import image_channels
from editkit.backbones.latent import LatentBackbone
from editkit.engine.dual_guidance import DualClassifierFree
from editkit.engine.lanes import select
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import sample
from editkit.engine.solvers import solver_named
from editkit.training.editor import Editor, draws_of, grouped, images_of
from editkit.types import Condition, EditRequest, EditResult


@dataclass(frozen=True)
class Instructed:
    """What the lanes of dual guidance see for a batch of requests: instruction and image, the image alone, neither."""

    both: Condition
    image_only: Condition
    neither: Condition

    def rows(self, rows: Tensor) -> Instructed:
        """Return it for some of the requests."""
        return Instructed(*(select(one, rows) for one in (self.both, self.image_only, self.neither)))  # type: ignore[arg-type]


class InstructedEditor(Editor):
    """Draws the edited image from pure noise, held to the image by one scale and to the instruction by another.

    The source enters by its channels alone (InstructPix2Pix, arXiv 2211.09800, section 3.2). A request's strength is a factor
    on the scale of the text: 0 follows no instruction.

    Args:
        backbone: a latent model with the image's latents as extra channels.
        name: the method's name.
        steps: sampling steps, unless a request says otherwise.
        text_scale, image_scale: s_T and s_I of `DualClassifierFree`.
        solver: name of a solver of `editkit.engine.solvers`.
        negative: text of the two lanes without the instruction, "" or what the image should not become.
        rescale: see `DualClassifierFree`.
    """

    needs = ("image", "instruction")

    def __init__(
        self,
        backbone: LatentBackbone,
        *,
        name: str,
        steps: int = 100,
        text_scale: float = 7.5,
        image_scale: float = 1.5,
        solver: str = "ddim",
        negative: str = "",
        rescale: float = 0.0,
    ) -> None:
        self.backbone, self.name, self.steps = backbone, name, steps
        self.text_scale, self.image_scale, self.rescale = text_scale, image_scale, rescale
        self.solver, self.negative = solver_named(solver), negative

    def tokens(self, requests: Sequence[EditRequest]) -> Tensor:
        """Return the tokens of the instructions, (B, L, D)."""
        return self.backbone.tokens([request.instruction or "" for request in requests])

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Instructed:
        """Encode images and instructions, for every strength."""
        image = image_channels(self.backbone, images_of(requests).to(self.backbone.device))
        empty = self.backbone.tokens([self.negative])
        return Instructed(
            Condition(tokens=self.tokens(requests), concat=image),
            Condition(tokens=empty, concat=image),
            Condition(tokens=empty, concat=torch.zeros_like(image)),
        )

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Instructed) -> EditResult:
        """Return the edited images; requests of the same steps and strength are one batch."""
        images, calls = torch.empty_like(images_of(requests)), [0.0] * len(requests)
        settings = ((request.steps or self.steps, 1.0 if request.strength is None else request.strength) for request in requests)
        for (steps, strength), rows in grouped(settings):
            some = [requests[row] for row in rows]
            edited, count = self._drawn(some, state.rows(torch.tensor(rows)), steps, strength * self.text_scale)
            images[rows] = edited.to(images)
            for row in rows:
                calls[row] = float(count)
        return EditResult(images, scores={"network_calls": calls})

    def _drawn(self, requests: Sequence[EditRequest], seen: Instructed, steps: int, text_scale: float) -> tuple[Tensor, int]:
        """Return the images and the network calls for each."""
        backbone = self.backbone
        guidance = DualClassifierFree(
            seen.image_only,
            seen.neither,
            text_scale,
            self.image_scale,
            rescale=self.rescale,
            rescale_of="v" if backbone.parameterization == "v" else "eps",
        )
        own, shape = draws_of(requests) | {"device": backbone.device}, seen.both.concat.shape[1:]  # type: ignore[union-attr]
        x, noise = batch_noise(shape, purpose="start", **own), level_noise(shape, **own)
        walk = self.solver.walk(backbone.solver_levels(self.solver, steps), noise=noise)
        with constant_text(backbone):
            z = sample(backbone, x, cond=seen.both, guidance=guidance, **walk)
        calls = sum(len(guidance.branches(seen.both, t)) for t in walk["levels"].times[1:])
        return backbone.decode(z).clamp(-1, 1), calls
