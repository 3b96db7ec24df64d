"""Figures: how they read in a table, and those of pixels, which all questions have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editkit.metrics.images import psnr, ssim


@dataclass(frozen=True)
class Figure:
    """How one figure is shown.

    Attributes:
        label: heading of its column.
        digits: decimals.
        better: 1 if higher is better, -1 if lower is.
        unit: after the number.
        about: what it is, in one sentence.
        short: heading in the terminal's table of 80 columns; None: it is not there.
    """

    label: str
    digits: int
    better: int
    unit: str
    about: str
    short: str | None = None


@dataclass(frozen=True)
class Scores:
    """What the judges say of N pictures.

    Attributes:
        figures: (N,) each, by the names of the questions' figures; nan where undefined.
        kept: per factor (N,): 1 kept, 0 lost, nan where it does not count.
        features: (N, D) for distances between sets of pictures; None where none are measured.
    """

    figures: dict[str, Tensor]
    kept: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


SCORE = Figure("score", 3, 1, "", "mean over images of sqrt(success x preservation)", "score")
PIXELS: Mapping[str, Figure] = {
    "psnr_inside": Figure("PSNR in", 1, 1, "dB", "to the truth, over the pixels that must change", "in dB"),
    "psnr_outside": Figure("PSNR out", 1, 1, "dB", "to the truth, over the pixels that must not change", "out dB"),
    "psnr": Figure("PSNR", 1, 1, "dB", "to the truth, over the whole picture"),
    "ssim_inside": Figure("SSIM in", 3, 1, "", "structural similarity to the truth, over the pixels that must change"),
    "ssim_outside": Figure("SSIM out", 3, 1, "", "structural similarity to the truth, over the pixels that must not change"),
    "ssim": Figure("SSIM", 3, 1, "", "structural similarity to the truth, over the whole picture"),
}
CLIP_DIRECTION = Figure("CLIP dir.", 2, 1, "", "cosine of the change with the change of captions; undefined if nothing changed")


def pixel_figures(images: Tensor, truth: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Return the figures of `PIXELS`, (B,) each; nan over an empty region.

    Args:
        images, truth: (B, 3, H, W) in [-1, 1].
        inside: (B, 1, H, W), 1 where a picture must change.
    """
    regions = {"_inside": inside, "_outside": 1 - inside, "": None}
    figures = {"psnr": psnr, "ssim": ssim}
    return {f"{name}{where}": of(images, truth, part) for name, of in figures.items() for where, part in regions.items()}


def joined(parts: Sequence[Scores]) -> Scores:
    """Return the scores of consecutive pictures as one, on the CPU."""
    features = [part.features.cpu() for part in parts if part.features is not None]
    return Scores(
        _cat([part.figures for part in parts]), _cat([part.kept for part in parts]), torch.cat(features) if features else None
    )


def _cat(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
