"""The questions of an evaluation: faces to edit, what the answer looks like, and where it differs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.data.toyworld.claims import LOOKS_YOUNG
from editkit.data.toyworld.faces import OLD, Face, draw_face, held_out, implied, render, visible
from editkit.data.toyworld.world import Edit, counterfactual, face_at
from editkit.errors import UsageError
from editkit.metrics.images import differing
from editkit.types import EditRequest

MARGIN = 2  # pixels that a mask reaches beyond what must change
# The ages that a reading may have to fall in a group; wrinkles start late, so younger faces all look alike.
AGES = {"young": (-math.inf, LOOKS_YOUNG), "middle-aged": (LOOKS_YOUNG, OLD), "old": (float(OLD), math.inf)}


@dataclass(frozen=True)
class Cases:
    """The same question for several faces.

    Attributes:
        edit: what to change.
        keys: name of each source picture.
        sources, answers: the faces before and after, for each picture.
        changed: whether the face of the split already showed the target and had that factor drawn anew.
        images, truth: their renderings (N, 3, H, W) in [-1, 1].
        region: (N, 1, H, W), 1 where the two differ.
    """

    edit: Edit
    keys: list[str]
    sources: list[Face]
    answers: list[Face]
    changed: list[bool]
    images: Tensor
    truth: Tensor
    region: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def wanted(self) -> dict[str, Any]:
        """Return what the oracle must read, as `metrics.edits.judge` takes it."""
        return {name: AGES[values[0]] if name == "age" else values[0] for name, values in self.edit.target.items()}

    @property
    def implied(self) -> frozenset[str]:
        """Return the measured factors that the edit may change."""
        return frozenset().union(*(implied(name) for name in (*self.edit.changes, *self.edit.target)))

    @property
    def visible(self) -> dict[str, Tensor]:
        """Return per factor (N,) bool whether the source shows it."""
        flags = [visible(face) for face in self.sources]
        return {name: torch.tensor([flag[name] for flag in flags]) for name in flags[0]}

    def requests(self, needs: Sequence[str] = (), *, steps: int | None = None, seed: int = 0) -> list[EditRequest]:
        """Return what an editor is asked; the mask, `MARGIN` pixels around what must change, only if it needs one.

        Raises:
            UsageError: the editor needs an input that this evaluation does not have.
        """
        grown = F.max_pool2d(self.region, 2 * MARGIN + 1, stride=1, padding=MARGIN)
        found = []
        for i, key in enumerate(self.keys):
            texts = {"prompt": self.edit.prompt, "source_prompt": self.edit.source_prompt}
            mask = grown[i] if "mask" in needs else None
            found.append(EditRequest(key, self.images[i], mask=mask, **texts, steps=steps, seed=seed))
        missing = found[0].missing(needs)
        if missing:
            raise UsageError(f"the toy faces have no {missing[0].replace('_', ' ')} to give, which this method needs")
        return found


def make_cases(edit: Edit, split: str, count: int, *, size: int = 64) -> Cases:
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
    images, truth = rendered(sources, size), rendered(answers, size)
    return Cases(edit, keys, sources, answers, changed, images, truth, differing(truth, images))


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


def rendered(faces: Sequence[Face], size: int = 64) -> Tensor:
    """Return renderings (N, 3, size, size) in [-1, 1]."""
    pictures = np.stack([render(face, size)[0] for face in faces])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
