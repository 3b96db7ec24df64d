"""Questions about faces: named edits such as "smiling", for methods that follow a text; the oracle reads every factor."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from editkit.app.questions.base import NO_EDIT, Questions, pictures, trained_edits
from editkit.app.questions.face_cases import FaceCases
from editkit.app.questions.face_judges import FIGURES, Judges, distances, judged, load_judges
from editkit.app.questions.figures import Scores
from editkit.data.toyworld.faces import Face, draw_face, held_out, render
from editkit.data.toyworld.world import EDITS, Edit, counterfactual, face_at, find_edit
from editkit.metrics.images import differing

STANDARD = ("smiling", "angry", "old", "with glasses")


class Faces(Questions):
    """Named edits of faces."""

    name = "faces"
    subject = "faces"
    answer = "Each edit has an exact answer: the same face rendered with the one factor changed."
    mark = "results"
    figures = FIGURES
    shown = ("success", "preservation", "score", "psnr_inside", "psnr_outside", "clip_direction", "identity")
    compared = ("score", "success", "preservation", "psnr_inside", "psnr_outside")
    baselines = (NO_EDIT, "reconstruction", "clip-guided", "sdedit")
    plain = ("backbone=toy_faces",)
    typical = "smiling"

    def edits(self) -> Mapping[str, Edit]:
        return EDITS

    def find(self, name: str) -> Edit:
        return find_edit(name)

    def usual(self, weights: Mapping[str, tuple[str, Sequence[str]]]) -> list[Edit]:
        """Return all edits that one of the methods would choose, the standard ones first.

        Raises:
            UserError: weights for a text that is no edit of the toy faces.
        """
        usual = [EDITS[name] for name in STANDARD]
        found = {edit.name: edit for own in weights.values() for edit in trained_edits(EDITS, *own) or usual}
        return [found[name] for name in dict.fromkeys([*STANDARD, *EDITS]) if name in found]

    def cases(self, edit: Edit, split: str, count: int, *, size: int) -> FaceCases:
        return make_cases(edit, split, count, size=size)

    def load_judges(self, device: torch.device | str) -> Judges:
        return load_judges(device)

    def judged(self, judges: Judges, cases: FaceCases, where: slice, images: Tensor) -> Scores:
        return judged(judges, cases, where, images)

    def distances(
        self, judges: Judges, cases: FaceCases, split: str, features: Mapping[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str], float]:
        """Return each variant's distance to the exact answers for other faces; ("", "") is that of these faces' own answers."""
        other = "test" if split == "validation" else "validation"
        real = make_cases(cases.edit, other, len(cases), size=cases.images.shape[-1]).truth
        device = next(judges.oracle.parameters()).device
        own = self.score(judges, cases, cases.truth.to(device)).features
        return distances(judges, {**features, ("", ""): own}, real.to(device))


def make_cases(edit: Edit, split: str, count: int, *, size: int = 64) -> FaceCases:
    """Return an edit of the first `count` faces of a split.

    A face that is no source of the edit (it shows the target already) keeps its place: the factors in the way are drawn
    anew, from its index and the edit's name alone, until it is one.
    """
    faces = [face_at(split, index) for index in range(count)]
    sources = [source_of(edit, face, index) for index, face in enumerate(faces)]
    answers = [counterfactual(face, edit.name) for face in sources]
    changed = [source != face for source, face in zip(sources, faces, strict=True)]
    suffix = edit.name.replace(" ", "-")
    keys = [f"faces/{split}/{i:06d}" + (f"-before-{suffix}" if anew else "") for i, anew in enumerate(changed)]
    images, truth = pictures(render, sources, size), pictures(render, answers, size)
    return FaceCases(edit, keys, images, truth, differing(truth, images), sources, answers, changed)


def source_of(edit: Edit, face: Face, index: int) -> Face:
    """Return the face, with the factors that the edit is about drawn anew if it is no source of the edit."""
    own = {field.name for field in fields(Face)}
    names = {*edit.changes, *(own & edit.applies.keys())}
    if "shown_hair" in {*edit.applies, *edit.target}:  # not a field: the hair's colour and age decide it
        names |= {"hair_colour", "age"}
    rng = np.random.default_rng(np.random.SeedSequence([index, zlib.crc32(edit.name.encode())]))
    while not edit.eligible(face) or held_out(face):
        other = draw_face(rng)
        face = replace(face, **{name: getattr(other, name) for name in names})
    return face
