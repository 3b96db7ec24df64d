"""Painting a masked part of an image from a reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.backbones.exemplar import ExemplarBackbone
from editkit.backbones.inpainting import exemplar_channels
from editkit.engine.guidance import ClassifierFree
from editkit.engine.lanes import select
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.engine.solvers import solver_named
from editkit.errors import UsageError, UserError
from editkit.training.editor import Editor, grouped, images_of
from editkit.types import Condition, EditRequest, EditResult

NAME = "pbe"
SMALLEST = 8  # pixels a side of a reference


class PaintByExampleEditor(Editor):
    """Draws the masked part of an image anew from one reference picture.

    What it returns is the model's whole picture; pasting it into the photograph leaves the pixels outside the mask alone.
    A request's strength is a factor on the guidance scale.

    Args:
        backbone: a Paint by Example model.
        steps: sampling steps, unless a request says otherwise.
        scale: classifier-free guidance; larger is closer to the reference.
        solver: "ddim", "plms" or another solver of `editkit.engine.solvers`.
        ref_resize: "squash" or "clip", see `ExemplarBackbone.exemplars`.
        mask_resize: "bilinear" or "nearest", see `exemplar_channels`.
    """

    name = NAME
    needs = ("image", "mask", "references")
    whole_references = True

    def __init__(
        self, backbone: ExemplarBackbone, *, steps: int, scale: float, solver: str, ref_resize: str, mask_resize: str
    ) -> None:
        self.backbone, self.steps, self.scale, self.solver = backbone, steps, scale, solver_named(solver)
        self.ref_resize, self.mask_resize = ref_resize, mask_resize

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raise a UserError for an input that is missing or that nothing can be painted from."""
        super().check(requests)
        for request in requests:
            check_request(request)

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Condition:
        """Encode masked images and references, for every strength."""
        device = self.backbone.device
        masks = torch.stack([request.mask for request in requests]).to(device)  # type: ignore[misc]
        concat = exemplar_channels(self.backbone, images_of(requests).to(device), masks, resize=self.mask_resize)
        tokens = self.backbone.exemplars([request.references[0] for request in requests], self.ref_resize)
        return Condition(tokens=tokens, concat=concat)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Condition) -> EditResult:
        """Return the images with their masks painted; requests of the same steps and strength are one batch."""
        images, calls = torch.empty_like(images_of(requests)), [0.0] * len(requests)
        settings = ((request.steps or self.steps, 1.0 if request.strength is None else request.strength) for request in requests)
        for (steps, strength), rows in grouped(settings):
            seen = select(state, torch.tensor(rows))
            painted, count = self._painted([requests[row] for row in rows], seen, steps, strength * self.scale)  # type: ignore[arg-type]
            images[rows] = painted.to(images)
            for row in rows:
                calls[row] = float(count)
        return EditResult(images, scores={"network_calls": calls})

    def _painted(self, requests: Sequence[EditRequest], seen: Condition, steps: int, scale: float) -> tuple[Tensor, int]:
        """Return the images and the network calls for each."""
        backbone = self.backbone
        nothing = Condition(tokens=backbone.image_encoder.uncond_vector.float(), concat=seen.concat)
        guidance = ClassifierFree(scale, nothing)
        walk = self.solver.walk(self.solver.levels(backbone.schedule, steps))
        shape = (backbone.sample_shape[0], *seen.concat.shape[2:])  # type: ignore[union-attr]
        seeds, samples = [request.seed for request in requests], [request.sample for request in requests]
        keys = [request.key for request in requests]
        x = batch_noise(shape, keys, seed=seeds, sample=samples, purpose="start", device=backbone.device)
        z = sample(backbone, x, cond=seen, guidance=guidance, **walk)
        calls = sum(len(guidance.branches(seen, t)) for t in walk["levels"].times[1:])
        return backbone.decode(z).clamp(-1, 1), calls


def check_request(request: EditRequest) -> None:
    """Raise a UserError for a mask or a reference that nothing can be painted from.

    Raises:
        UsageError: several references.
        UserError: a mask of another size, of nothing or of everything; a tiny reference.
    """
    who = request.key or "the image"
    height, width = request.image.shape[1:]  # type: ignore[union-attr]
    mask, reference = request.mask, request.references[0]
    if len(request.references) > 1:
        raise UsageError(f"{NAME} paints from one --reference, got {len(request.references)}")
    if tuple(mask.shape) != (1, height, width):  # type: ignore[union-attr]
        size = "x".join(map(str, mask.shape[1:]))  # type: ignore[union-attr]
        raise UserError(f"{who}: the mask is {size} (height x width), the image {height}x{width}: they need one size")
    share = float((mask > 0.5).float().mean())  # type: ignore[operator]
    if share in (0.0, 1.0):
        seen = "selects nothing" if share == 0 else "covers everything that the model sees"
        raise UserError(f"{who}: the mask {seen}: mark the part to paint, white, and leave some of the picture around it")
    if min(reference.shape[1:]) < SMALLEST:
        size = "x".join(map(str, reference.shape[1:]))
        raise UserError(f"{who}: the reference is {size} pixels (height x width), too small: give at least {SMALLEST} a side")
