"""Questions in words: an instruction such as "make the cup blue" for a scene, in row groups by kind of change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from editkit.app.questions.base import NO_EDIT, Named
from editkit.app.questions.figures import Figure
from editkit.app.questions.scenes import FIGURES, SceneCases, SceneJudges, SceneQuestions, posed
from editkit.data.toyworld.scenes.edits import KINDS
from editkit.data.toyworld.scenes.world import edit_at, key_of, scene_at
from editkit.metrics.scene_edits import SceneReading

EDITS = {kind: Named(kind) for kind in KINDS}


@dataclass(frozen=True)
class InstructionCases(SceneCases):
    """Instructions of one kind."""

    def inputs(self, index: int) -> dict[str, Any]:
        return {**super().inputs(index), "instruction": self.edits[index].instruction}

    def about(self) -> dict[str, Any]:
        return {"question": f'Such as "{self.edits[0].instruction}".'}


class Instructions(SceneQuestions):
    """Instructions for scenes, by kind of change."""

    name = "instructions"
    answer = "Each instruction has an exact answer: the same scene rendered with the one thing changed."
    mark = "results instructions"
    figures: Mapping[str, Figure] = {
        **FIGURES,
        "clip_similarity": Figure("CLIP sim.", 3, 1, "", "cosine of the CLIP features of result and source"),
    }
    shown = ("success", "preservation", "score", "psnr_inside", "psnr_outside", "ssim", "clip_direction", "clip_similarity")
    compared = ("score", "success", "preservation", "psnr_inside", "psnr_outside")
    baselines = (NO_EDIT, "reconstruction", "sdedit", "p2p")
    typical = "recolour"
    tradeoffs = (("clip_similarity", "clip_direction"), ("preservation", "success"))

    def edits(self) -> Mapping[str, Named]:
        return EDITS

    def cases(self, edit: Named, split: str, count: int, *, size: int) -> InstructionCases:
        """Return the first instructions of one kind; a scene that has none gives its place to another, which its key says."""
        found = [edit_at(split, k, (edit.name,)) for k in range(count)]
        own = [one.source == scene_at(split, k) for k, one in enumerate(found)]
        keys = [key_of(split, k) + ("" if same else f"-{edit.name}") for k, same in enumerate(own)]
        return InstructionCases(edit, keys, **posed(found, size))

    def measured(
        self, judges: SceneJudges, cases: SceneCases, where: slice, images: Tensor, readings: Sequence[SceneReading]
    ) -> dict[str, Tensor]:
        seen = [judges.clip.image(part) for part in (cases.images[where].to(images), images)]
        figures = super().measured(judges, cases, where, images, readings)
        return {**figures, "clip_similarity": F.cosine_similarity(*seen)}
