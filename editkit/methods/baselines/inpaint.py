"""Inpainting by a text: the masked part of an image is drawn anew from a prompt (arXiv 2112.10752, section 4.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.exemplar import ExemplarBackbone
from editkit.backbones.inpainting import inpainting_channels
from editkit.backbones.latent import LatentBackbone
from editkit.errors import UsageError
from editkit.training.method import Artefact, Editor, Method
from editkit.training.painting import PaintingEditor, Seen
from editkit.types import Condition, EditRequest


class InpaintEditor(PaintingEditor[LatentBackbone]):
    """Draws the masked part of an image anew under a prompt.

    Args:
        backbone: an inpainting model that reads text.
        negative: what the result should not become, in place of the empty text.
        sampling: steps, scale and solver, see `PaintingEditor`.
    """

    name = "inpaint"
    needs = ("image", "mask", "prompt")

    def __init__(self, backbone: LatentBackbone, *, negative: str, **sampling: Any) -> None:
        super().__init__(backbone, **sampling)
        self.negative = negative

    def seen(self, requests: Sequence[EditRequest], images: Tensor, masks: Tensor) -> Seen:
        """Return the masked images with the prompts' tokens, and with those of the negative text."""
        concat = inpainting_channels(self.backbone, images, masks)
        tokens = self.backbone.tokens([request.prompt or "" for request in requests])
        empty = self.backbone.tokens([self.negative])
        return Seen(Condition(tokens=tokens, concat=concat), Condition(tokens=empty, concat=concat))


class Inpaint(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: an inpainting model that reads text.
        steps, scale, solver: see `PaintingEditor`.
        negative: see `InpaintEditor`.

    Raises:
        UsageError: a backbone of another kind.
    """

    def __init__(
        self, *, backbone: Backbone, steps: int = 50, scale: float = 7.5, solver: str = "ddim", negative: str = ""
    ) -> None:
        super().__init__()
        odd = _odd(backbone)
        if odd:
            raise UsageError(
                "inpaint needs a latent inpainting model that reads text, with 5 channels beyond the latents; "
                f"this backbone {odd}: choose backbone=sd15_inpainting or backbone=toy_inpainting"
            )
        self.backbone = backbone
        self.settings = {"steps": steps, "scale": scale, "solver": solver, "negative": negative}

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        return InpaintEditor(self.backbone, **self.settings)  # type: ignore[arg-type]


def _odd(backbone: Backbone) -> str:
    """Return why a text cannot be painted with a backbone, "" if it can."""
    if not isinstance(backbone, LatentBackbone):
        return "is one of pixels"
    if isinstance(backbone, ExemplarBackbone) or backbone.text_encoder is None:
        return "reads no text"
    return "" if backbone.extra_channels == 5 else f"has {backbone.extra_channels}"
