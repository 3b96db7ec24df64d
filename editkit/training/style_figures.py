"""The figures of a CLIP that knows faces in styles, on faces that it was not trained on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.clip import ClipEncoder
from editkit.data.toyworld.styled import STYLES, styled_at
from editkit.data.toyworld.styles import CALLED
from editkit.data.toyworld.world import SOURCE_PROMPT
from editkit.training.figures import KNOWN


@torch.no_grad()
def clip_style_figures(clip: ClipEncoder, *, images: int = 256) -> dict[str, Any]:
    """Return zero-shot accuracies of the styles, and the cosine between image and text directions of true counterfactuals."""
    words = clip.text([SOURCE_PROMPT, *(f"{CALLED[style]} of {SOURCE_PROMPT}" for style in STYLES[1:])])
    seen = {style: _seen(clip, style, images) for style in STYLES}
    ways = F.normalize(words[1:] - words[:1], dim=1)
    figures: dict[str, Any] = {}
    for own, style in enumerate(STYLES):
        figures[f"zero-shot {style}"] = _share((seen[style] @ words.T).argmax(1) == own)
    for own, style in enumerate(STYLES[1:]):
        cosines = F.normalize(seen[style] - seen["plain"], dim=1) @ ways.T
        figures[f"direction {style}"] = round(cosines[:, own].mean().item(), 3)
        figures[f"nearest direction {style}"] = _share(cosines.argmax(1) == own)
    return figures


def _seen(clip: ClipEncoder, style: str, images: int) -> Tensor:
    shown = KNOWN["styles"].pictures([styled_at("test", k, style) for k in range(images)])
    return torch.cat([clip.image(part) for part in shown.split(64)])


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 4)
