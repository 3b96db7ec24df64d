"""Painting a masked part of an image from a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from editkit.backbones.exemplar import ExemplarBackbone
from editkit.backbones.inpainting import exemplar_channels
from editkit.errors import UsageError, UserError
from editkit.training.painting import PaintingEditor, Seen
from editkit.types import Condition, EditRequest

NAME = "pbe"
SMALLEST = 8  # pixels a side of a reference


class PaintByExampleEditor(PaintingEditor[ExemplarBackbone]):
    """Draws the masked part of an image anew from one reference picture; a larger scale is closer to it.

    Args:
        backbone: a Paint by Example model.
        ref_resize: "squash" or "clip", see `ExemplarBackbone.exemplars`.
        mask_resize: "bilinear" or "nearest", see `exemplar_channels`.
        sampling: steps, scale and solver, see `PaintingEditor`.
    """

    name = NAME
    needs = ("image", "mask", "references")
    whole_references = True

    def __init__(self, backbone: ExemplarBackbone, *, ref_resize: str, mask_resize: str, **sampling: Any) -> None:
        super().__init__(backbone, **sampling)
        self.ref_resize, self.mask_resize = ref_resize, mask_resize

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raise a UserError for an input that is missing or that nothing can be painted from."""
        super().check(requests)
        for request in requests:
            check_reference(request)

    def seen(self, requests: Sequence[EditRequest], images: Tensor, masks: Tensor) -> Seen:
        """Return the masked images with the references' tokens, and with the learned vector in their place."""
        concat = exemplar_channels(self.backbone, images, masks, resize=self.mask_resize)
        tokens, none = self.backbone.exemplars([request.references[0] for request in requests], self.ref_resize)
        return Seen(Condition(tokens=tokens, concat=concat), Condition(tokens=none, concat=concat))


def check_reference(request: EditRequest) -> None:
    """Raise a UserError for several references, or a tiny one."""
    if len(request.references) > 1:
        raise UsageError(f"{NAME} paints from one --reference, got {len(request.references)}")
    shape = request.references[0].shape[1:]
    if min(shape) < SMALLEST:
        size = "x".join(map(str, shape))
        raise UserError(
            f"{request.key or 'the image'}: the reference is {size} pixels (height x width), too small: give at least "
            f"{SMALLEST} a side"
        )
