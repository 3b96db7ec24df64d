"""Editors that draw the masked part of an image anew, from noise, with a model that sees the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from editkit.backbones.attention import constant_text
from editkit.backbones.latent import LatentBackbone
from editkit.engine.guidance import ClassifierFree
from editkit.engine.lanes import select
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import sample
from editkit.engine.solvers import solver_named
from editkit.errors import UserError
from editkit.training.editor import Editor, draws_of, grouped, images_of
from editkit.types import Condition, EditRequest, EditResult

Model = TypeVar("Model", bound=LatentBackbone)


@dataclass(frozen=True)
class Seen:
    """What a model sees of a batch of requests: all of it, and the same without what is to be painted."""

    whole: Condition
    nothing: Condition

    def rows(self, rows: list[int]) -> Seen:
        """Return it for some of the requests."""
        return Seen(*(select(one, torch.tensor(rows)) for one in (self.whole, self.nothing)))  # type: ignore[arg-type]


class PaintingEditor(Editor, Generic[Model]):
    """Draws a masked part from pure noise under classifier-free guidance; a subclass says what the model sees.

    What it returns is the model's whole picture; pasting it into the photograph leaves the pixels outside the mask alone.
    A request's strength is a factor on the guidance scale.

    Args:
        backbone: an inpainting model.
        steps: sampling steps, unless a request says otherwise.
        scale: classifier-free guidance.
        solver: name of a solver of `editkit.engine.solvers`.
    """

    def __init__(self, backbone: Model, *, steps: int, scale: float, solver: str) -> None:
        self.backbone, self.steps, self.scale, self.solver = backbone, steps, scale, solver_named(solver)

    def seen(self, requests: Sequence[EditRequest], images: Tensor, masks: Tensor) -> Seen:
        """Return what the model sees of requests with images (B, 3, H, W) and masks (B, 1, H, W) on its device."""
        raise NotImplementedError(f"{type(self).__name__}.seen")

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raise a UserError for an input that is missing, or a mask that nothing can be painted in."""
        super().check(requests)
        for request in requests:
            check_mask(request)

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Seen:
        """Encode what the model sees, for every strength."""
        masks = torch.stack([request.mask for request in requests])  # type: ignore[misc]
        return self.seen(requests, images_of(requests).to(self.backbone.device), masks.to(self.backbone.device))

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Seen) -> EditResult:
        """Return the images with their masks painted; requests of the same steps and strength are one batch."""
        images, calls = torch.empty_like(images_of(requests)), [0.0] * len(requests)
        settings = ((request.steps or self.steps, 1.0 if request.strength is None else request.strength) for request in requests)
        for (steps, strength), rows in grouped(settings):
            some = [requests[row] for row in rows]
            painted, count = self._painted(some, state.rows(rows), steps, strength * self.scale)
            images[rows] = painted.to(images)
            for row in rows:
                calls[row] = float(count)
        return EditResult(images, scores={"network_calls": calls})

    def _painted(self, requests: Sequence[EditRequest], seen: Seen, steps: int, scale: float) -> tuple[Tensor, int]:
        """Return the images and the network calls for each."""
        backbone, guidance = self.backbone, ClassifierFree(scale, seen.nothing)
        shape = (backbone.sample_shape[0], *seen.whole.concat.shape[2:])  # type: ignore[union-attr]
        own = draws_of(requests) | {"device": backbone.device}
        x, noise = batch_noise(shape, purpose="start", **own), level_noise(shape, **own)
        walk = self.solver.walk(backbone.solver_levels(self.solver, steps), noise=noise)
        with constant_text(backbone):
            z = sample(backbone, x, cond=seen.whole, guidance=guidance, **walk)
        calls = sum(len(guidance.branches(seen.whole, t)) for t in walk["levels"].times[1:])
        return backbone.decode(z).clamp(-1, 1), calls


def check_mask(request: EditRequest) -> None:
    """Raise a UserError for a mask of another size than the image's, of nothing or of everything."""
    who, mask = request.key or "the image", request.mask
    height, width = request.image.shape[1:]  # type: ignore[union-attr]
    if tuple(mask.shape) != (1, height, width):  # type: ignore[union-attr]
        size = "x".join(map(str, mask.shape[1:]))  # type: ignore[union-attr]
        raise UserError(f"{who}: the mask is {size} (height x width), the image {height}x{width}: they need one size")
    share = float((mask > 0.5).float().mean())  # type: ignore[operator]
    if share in (0.0, 1.0):
        seen = "selects nothing" if share == 0 else "covers everything that the model sees"
        raise UserError(f"{who}: the mask {seen}: mark the part to paint, white, and leave some of the picture around it")
