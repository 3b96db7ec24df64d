"""The same edit of several faces, and what the oracle should read of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from editkit.app.questions.base import Cases
from editkit.data.toyworld.claims import LOOKS_YOUNG
from editkit.data.toyworld.faces import OLD, Face, implied, visible

# The ages that a reading may have to fall in a group; wrinkles start late, so younger faces all look alike.
AGES = {"young": (-math.inf, LOOKS_YOUNG), "middle-aged": (LOOKS_YOUNG, OLD), "old": (float(OLD), math.inf)}


@dataclass(frozen=True)
class FaceCases(Cases):
    """The same edit of several faces.

    Attributes:
        sources, answers: the faces before and after, for each picture.
        changed: whether the face of the split already showed the target and had that factor drawn anew.
    """

    sources: list[Face]
    answers: list[Face]
    changed: list[bool]

    what: ClassVar[str] = "toy faces"

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

    def inputs(self, index: int) -> dict[str, Any]:
        return {"prompt": self.edit.prompt, "source_prompt": self.edit.source_prompt}

    def about(self) -> dict[str, Any]:
        redrawn = sum(self.changed)
        said = f'"{self.edit.source_prompt}" to "{self.edit.prompt}".'
        anew = f"{redrawn} of {len(self)} faces showed the target already and had that factor drawn anew first."
        texts = {"prompt": self.edit.prompt, "source_prompt": self.edit.source_prompt}
        return {**texts, "redrawn": redrawn, "question": f"{said} {anew}"}
