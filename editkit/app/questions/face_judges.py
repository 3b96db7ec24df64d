"""Everything that is measured of an edited face, and the networks that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from editkit.app.questions.face_cases import FaceCases
from editkit.app.questions.figures import CLIP_DIRECTION, PIXELS, SCORE, Figure, Scores, pixel_figures
from editkit.metrics import clip as clip_metric
from editkit.metrics.edits import judge
from editkit.metrics.frechet import frechet
from editkit.metrics.identity import similarity
from editkit.metrics.images import perceptual
from editkit.metrics.oracle import Oracle

BATCH = 64


FIGURES: Mapping[str, Figure] = {
    "success": Figure("success", 2, 1, "", "the oracle reads the target", "success"),
    "preservation": Figure(
        "preservation", 3, 1, "", "share of the other visible factors that the oracle reads as they were", "kept"
    ),
    "score": SCORE,
    **PIXELS,
    "perceptual_inside": Figure("perc. in", 3, -1, "", "perceptual distance to the truth, pixels that must change"),
    "perceptual_outside": Figure("perc. out", 3, -1, "", "perceptual distance to the truth, pixels that must not change"),
    "perceptual": Figure("perceptual", 3, -1, "", "perceptual distance to the truth, whole picture"),
    "clip_direction": CLIP_DIRECTION,
    "identity": Figure("identity", 3, 1, "", "cosine of identity embeddings with the source"),
}


class TextImageEncoder(Protocol):
    """A CLIP: unit embeddings (B, D) of images in [-1, 1] and of texts."""

    def image(self, images: Tensor) -> Tensor: ...

    def text(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Judges:
    """The networks that look at results.

    Attributes:
        oracle: reads the factors.
        clip: for the direction of the change.
        distance: perceptual distance of two batches, (B,).
        embed: identity embeddings (B, D).
    """

    oracle: Oracle
    clip: TextImageEncoder
    distance: Callable[[Tensor, Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]


def load_judges(device: torch.device | str = "cpu") -> Judges:
    """Load the bundled judges of toy faces.

    Raises:
        UserError: one of them is not there.
    """
    from editkit.backbones.clip import load_clip
    from editkit.backbones.features import load_perceptual
    from editkit.backbones.identity import load_identity
    from editkit.metrics.oracle import load_oracle

    oracle, clip = load_oracle("editkit:toy-oracle").to(device), load_clip("editkit:toy-clip").to(device)
    distance, embed = load_perceptual("editkit:toy-perceptual").to(device), load_identity("editkit:toy-identity").to(device)
    return Judges(oracle, clip, distance.distance, embed)


def distances(judges: Judges, sets: Mapping[Any, Tensor], real: Tensor) -> dict[Any, float]:
    """Return the Frechet distance of each set of oracle features (N, D) to real images (M, 3, H, W)."""
    with torch.no_grad():
        reference = torch.cat([judges.oracle.features(chunk).cpu() for chunk in real.split(BATCH)])
    return {name: frechet(features, reference) for name, features in sets.items()}


def judged(judges: Judges, cases: FaceCases, where: slice, images: Tensor) -> Scores:
    """Judge edited images (B, 3, H, W) in [-1, 1], of the cases of a slice."""
    source, truth, inside = cases.images[where].to(images), cases.truth[where].to(images), cases.region[where].to(images)
    edited = judge(
        judges.oracle,
        images,
        wanted=cases.wanted,
        truth={name: value.to(images.device) for name, value in judges.oracle.truth(cases.sources[where]).items()},
        visible={name: value[where].to(images.device) for name, value in cases.visible.items()},
        implied=cases.implied,
    )
    texts = judges.clip.text([cases.edit.source_prompt, cases.edit.prompt])
    found: dict[str, Any] = {"success": edited.success, "preservation": edited.preservation, "score": edited.score}
    found |= pixel_figures(images, truth, inside)
    for suffix, region in (("_inside", inside), ("_outside", 1 - inside), ("", None)):
        found["perceptual" + suffix] = perceptual(judges.distance, images, truth, region)
    found["clip_direction"] = clip_metric.direction(judges.clip.image(source), judges.clip.image(images), texts[0], texts[1])
    found["identity"] = similarity(judges.embed, source, images)
    return Scores({name: found[name] for name in FIGURES}, edited.kept, judges.oracle.features(images))
