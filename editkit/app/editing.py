"""One batch through an editor: every picture at every strength, with one preparation for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editkit.app.inputs import Subject
from editkit.app.loaded import Loaded
from editkit.errors import UserError

RECONSTRUCTION = "reconstruction_psnr"
# Reconstructions this many dB below the backbone's card (four times its squared error) are worth a warning.
UNLIKE = 6.0


@dataclass(frozen=True)
class Edited:
    """One result.

    Attributes:
        image: (3, h, w) in [-1, 1], at the model's size.
        strength, sample: which of a picture's results it is.
        scores: figures that the method gives (network calls, reconstruction PSNR...).
        text: what the method wrote, if it writes.
    """

    image: Tensor
    strength: float | None
    sample: int
    scores: dict[str, float] = field(default_factory=dict)
    text: str | None = None


@torch.no_grad()
def edit_batch(
    loaded: Loaded, subjects: Sequence[Subject], strengths: Sequence[float | None] = (None,), samples: int = 1
) -> list[list[Edited]]:
    """Return the results of each subject, strengths outermost; what needs gradients inside an editor switches them on.

    Raises:
        UserError: the method returned values that are not finite, or a number of images that nobody asked for.
    """
    requests = [subject.request.with_(sample=sample) for subject in subjects for sample in range(samples)]
    loaded.editor.check(requests)
    state = loaded.editor.prepare(requests)
    results: list[list[Edited]] = [[] for _ in subjects]
    for strength in strengths:
        asked = requests if strength is None else [request.with_(strength=strength) for request in requests]
        result = loaded.editor.edit(asked, state)
        if len(result.images) != len(asked):
            raise UserError(f"{loaded.name} returned {len(result.images)} images for {len(asked)} requests")
        for place, request in enumerate(asked):
            image = result.images[place].float().cpu()
            if not torch.isfinite(image).all():
                raise UserError(f"{loaded.name} returned values that are not finite for {request.key}: try --dtype fp32")
            scores = {name: float(figures[place]) for name, figures in result.scores.items()}
            text = None if result.texts is None else result.texts[place]
            results[place // samples].append(Edited(image, strength, request.sample, scores, text))
    return results


def warning(loaded: Loaded, scores: dict[str, float]) -> str | None:
    """Return a sentence if a picture's reconstruction is far below what the backbone reaches on its own kind of images."""
    reached, expected = scores.get(RECONSTRUCTION), loaded.expected_psnr
    if reached is None or expected is None or reached > expected - UNLIKE:
        return None
    return (
        f"its reconstruction reaches {reached:.1f} dB where this model reaches {expected:.1f} dB: the picture is unlike what the "
        f"model was trained on, so expect changes that were not asked for"
    )
