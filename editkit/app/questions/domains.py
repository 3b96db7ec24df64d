"""Questions between two domains: a scene by day is to become night, and come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from editkit.app.questions.base import NO_EDIT
from editkit.app.questions.figures import Figure
from editkit.app.questions.scenes import FIGURES, SceneCases, SceneJudges, SceneQuestions, load_readers, posed
from editkit.data.domains import FACTORS, SceneDomains
from editkit.data.toyworld.scenes.edits import SceneEdit
from editkit.data.toyworld.scenes.world import key_of
from editkit.metrics.images import psnr
from editkit.metrics.scene_edits import SceneReading
from editkit.metrics.structure import KeyEncoder, structure_distance


@dataclass(frozen=True)
class Direction:
    """From one domain to the other.

    Attributes:
        factor: what they differ in.
        start: number of the domain where it starts, 0 or 1.
    """

    factor: str
    start: int
    prompt: str | None = None

    @property
    def name(self) -> str:
        values = FACTORS[self.factor]
        return f"{values[self.start]} to {values[1 - self.start]}"


EDITS = {way.name: way for way in (Direction(factor, start) for factor in FACTORS for start in (0, 1))}


@dataclass(frozen=True)
class DomainCases(SceneCases):
    """Translations one way, and back."""

    def back(self, images: Tensor) -> DomainCases:
        """Return the translated pictures (N, 3, H, W) with their captions exchanged and keys, hence noise, of their own."""
        keys, texts = [f"{key}-back" for key in self.keys], [(target, source) for source, target in self.texts]
        return replace(self, keys=keys, images=images, truth=self.images, texts=texts)


@dataclass(frozen=True)
class DomainJudges(SceneJudges):
    """What reads scenes, and a DINO for their structure."""

    dino: KeyEncoder


class Domains(SceneQuestions):
    """Translations between day and night, summer and winter."""

    name = "domains"
    answer = "Each translation has an exact answer: the same scene rendered in the other domain."
    mark = "results domains"
    figures: Mapping[str, Figure] = {
        **FIGURES,
        "structure": Figure(
            "structure", 3, -1, "", "distance to the source in the self-similarity of DINO's patch keys, last layer", "struct."
        ),
        "cycle": Figure("cycle", 1, 1, "dB", "PSNR to the source of the translation translated back", "cycle"),
    }
    shown = ("success", "preservation", "score", "structure", "cycle", "psnr", "ssim", "clip_direction")
    compared = ("score", "success", "preservation", "structure", "cycle")
    baselines = (NO_EDIT, "reconstruction", "sdedit")
    typical = "day to night"

    def edits(self) -> Mapping[str, Direction]:
        return EDITS

    def cases(self, edit: Direction, split: str, count: int, *, size: int) -> DomainCases:
        """Return the first scenes of a split in the domain where the translation starts, every one of them."""
        scenes = SceneDomains(split, count, size, edit.factor)
        pairs = [[scenes.scene(k, domain) for domain in (edit.start, 1 - edit.start)] for k in range(count)]
        keys = [f"{key_of(split, k)}-{FACTORS[edit.factor][edit.start]}" for k in range(count)]
        return DomainCases(edit, keys, **posed([SceneEdit(edit.factor, "", *pair) for pair in pairs], size))

    def load_judges(self, device: torch.device | str) -> DomainJudges:
        from editkit.backbones.dino import load_dino

        return DomainJudges(**load_readers(device), dino=load_dino("editkit:toy-dino").to(device))

    def measured(
        self, judges: DomainJudges, cases: SceneCases, where: slice, images: Tensor, readings: Sequence[SceneReading]
    ) -> dict[str, Tensor]:
        keys = [judges.dino.keys(part) for part in (cases.images[where].to(images), images)]
        figures = super().measured(judges, cases, where, images, readings)
        return {**figures, "structure": structure_distance(*keys)}

    def of_return(self, cases: DomainCases, returned: Tensor) -> dict[str, Tensor]:
        return {"cycle": psnr(returned, cases.images)}
