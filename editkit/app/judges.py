"""Everything that is measured of an edited picture, and how its figures read in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from editkit.app.cases import Cases
from editkit.metrics import clip as clip_metric
from editkit.metrics.edits import judge
from editkit.metrics.frechet import frechet
from editkit.metrics.identity import similarity
from editkit.metrics.images import perceptual, psnr, ssim
from editkit.metrics.oracle import Oracle

BATCH = 64


@dataclass(frozen=True)
class Figure:
    """How one figure is shown.

    Attributes:
        label: heading of its column.
        digits: decimals.
        better: 1 if higher is better, -1 if lower is.
        unit: after the number.
        about: what it is, in one sentence.
    """

    label: str
    digits: int
    better: int
    unit: str
    about: str


FIGURES: Mapping[str, Figure] = {
    "success": Figure("success", 2, 1, "", "the oracle reads the target"),
    "preservation": Figure("preservation", 3, 1, "", "share of the other visible factors that the oracle reads as they were"),
    "score": Figure("score", 3, 1, "", "mean over images of sqrt(success x preservation)"),
    "psnr_inside": Figure("PSNR in", 1, 1, "dB", "to the truth, over the pixels that must change"),
    "psnr_outside": Figure("PSNR out", 1, 1, "dB", "to the truth, over the pixels that must not change"),
    "psnr": Figure("PSNR", 1, 1, "dB", "to the truth, over the whole picture"),
    "ssim_inside": Figure("SSIM in", 3, 1, "", "structural similarity to the truth, over the pixels that must change"),
    "ssim_outside": Figure("SSIM out", 3, 1, "", "structural similarity to the truth, over the pixels that must not change"),
    "ssim": Figure("SSIM", 3, 1, "", "structural similarity to the truth, over the whole picture"),
    "perceptual_inside": Figure("perc. in", 3, -1, "", "perceptual distance to the truth, pixels that must change"),
    "perceptual_outside": Figure("perc. out", 3, -1, "", "perceptual distance to the truth, pixels that must not change"),
    "perceptual": Figure("perceptual", 3, -1, "", "perceptual distance to the truth, whole picture"),
    "clip_direction": Figure(
        "CLIP dir.", 2, 1, "", "cosine of the change with the change of captions; undefined if nothing changed"
    ),
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


@dataclass(frozen=True)
class Scores:
    """What the judges say of N pictures.

    Attributes:
        figures: (N,) each, by the names of `FIGURES`; nan where undefined.
        kept: per factor (N,): 1 kept, 0 lost, nan where it does not count.
        features: oracle features (N, D).
    """

    figures: dict[str, Tensor]
    kept: dict[str, Tensor]
    features: Tensor


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


@torch.no_grad()
def score(judges: Judges, cases: Cases, images: Tensor) -> Scores:
    """Judge edited images (N, 3, H, W) in [-1, 1], one of each case."""
    parts = [_score(judges, *chunk) for chunk in _chunks(cases, images)]
    return Scores(
        _join([part.figures for part in parts]), _join([part.kept for part in parts]), torch.cat([p.features for p in parts])
    )


def distances(judges: Judges, sets: Mapping[Any, Tensor], real: Tensor) -> dict[Any, float]:
    """Return the Frechet distance of each set of oracle features (N, D) to real images (M, 3, H, W)."""
    with torch.no_grad():
        reference = torch.cat([judges.oracle.features(chunk).cpu() for chunk in real.split(BATCH)])
    return {name: frechet(features, reference) for name, features in sets.items()}


def _score(judges: Judges, cases: Cases, where: slice, images: Tensor) -> Scores:
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
    for suffix, region in (("_inside", inside), ("_outside", 1 - inside), ("", None)):
        found["psnr" + suffix] = psnr(images, truth, region)
        found["ssim" + suffix] = ssim(images, truth, region)
        found["perceptual" + suffix] = perceptual(judges.distance, images, truth, region)
    found["clip_direction"] = clip_metric.direction(judges.clip.image(source), judges.clip.image(images), texts[0], texts[1])
    found["identity"] = similarity(judges.embed, source, images)
    return Scores({name: found[name].cpu() for name in FIGURES}, _on_cpu(edited.kept), judges.oracle.features(images).cpu())


def _chunks(cases: Cases, images: Tensor) -> Iterator[tuple[Cases, slice, Tensor]]:
    for start in range(0, len(images), BATCH):
        yield cases, slice(start, start + BATCH), images[start : start + BATCH]


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in values.items()}
