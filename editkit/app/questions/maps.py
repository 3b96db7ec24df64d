"""Questions about maps of parts: a part of a face is repainted in its map, and the picture is to follow the map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from editkit.app.questions.base import NO_EDIT
from editkit.app.questions.face_cases import FaceCases
from editkit.app.questions.face_judges import FIGURES, Judges, load_judges
from editkit.app.questions.faces import Faces
from editkit.app.questions.figures import Figure, Scores
from editkit.data.toyworld.faces import PARTS, render
from editkit.data.toyworld.world import EDITS, Edit
from editkit.metrics.part_oracle import PartOracle, load_part_oracle, overlap

# The parts that an edit repaints; those whose shape tells the edit.
REPAINTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"smiling": ("mouth",), "angry": ("brows", "mouth"), "with glasses": ("glasses",), "long hair": ("hair",)}
)


@dataclass(frozen=True)
class MapCases(FaceCases):
    """The same part of several faces, repainted.

    Attributes:
        maps: the repainted maps (N, H, W), numbers of parts.
    """

    maps: Tensor

    what: ClassVar[str] = "maps of toy faces"

    def inputs(self, index: int) -> dict[str, Any]:
        painted = {"segmentation": self.maps[index][None].float(), "labels": ", ".join(REPAINTED[self.edit.name])}
        return {**super().inputs(index), **painted}

    def about(self) -> dict[str, Any]:
        parts = " and ".join(REPAINTED[self.edit.name])
        return {**super().about(), "question": f"The {parts} are repainted in the map, as {self.edit.name} has them."}


@dataclass(frozen=True)
class MapJudges(Judges):
    """The judges of faces, and an oracle that finds their parts."""

    parts: PartOracle


class Maps(Faces):
    """Repainted parts of faces."""

    name = "maps"
    answer = "Each repainted map has an exact answer: the face that it is the map of."
    mark = "results maps"
    figures: Mapping[str, Figure] = {
        **FIGURES,
        "overlap": Figure(
            "IoU", 3, 1, "", "intersection over union of the repainted parts, as an oracle finds them, with the map", "IoU"
        ),
    }
    shown = ("success", "preservation", "score", "overlap", "psnr_inside", "psnr_outside", "identity")
    compared = ("score", "success", "preservation", "overlap", "psnr_outside")
    baselines = (NO_EDIT, "reconstruction", "clip-guided", "sdedit")
    tradeoffs = (("preservation", "success"), ("psnr_outside", "overlap"))

    def edits(self) -> Mapping[str, Edit]:
        return {name: EDITS[name] for name in REPAINTED}

    def find(self, name: str) -> Edit:
        return super(Faces, self).find(name)

    def usual(self, weights: Mapping[str, tuple[str, Sequence[str]]]) -> list[Edit]:
        return list(self.edits().values())

    def cases(self, edit: Edit, split: str, count: int, *, size: int) -> MapCases:
        found = super().cases(edit, split, count, size=size)
        drawn = np.stack([render(face, size, labels=True)[1] for face in found.answers])  # type: ignore[misc]
        own = {field.name: getattr(found, field.name) for field in fields(found)}
        return MapCases(**own, maps=torch.from_numpy(drawn.astype(np.int64)))

    def load_judges(self, device: torch.device | str) -> MapJudges:
        judges = load_judges(device)
        return MapJudges(**vars(judges), parts=load_part_oracle().to(device))

    def judged(self, judges: MapJudges, cases: MapCases, where: slice, images: Tensor) -> Scores:  # type: ignore[override]
        scores = super().judged(judges, cases, where, images)
        repainted = [PARTS.index(name) for name in REPAINTED[cases.edit.name]]
        iou = overlap(judges.parts.read(images), cases.maps[where].to(images.device), repainted)
        return Scores({**scores.figures, "overlap": iou}, scores.kept, scores.features)
