"""Toy faces drawn in a style: the same face in another style is the exact answer to a stylisation."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from editkit.data.toyworld import faces
from editkit.data.toyworld.claims import measured as measured_face
from editkit.data.toyworld.faces import Face
from editkit.data.toyworld.styles import CALLED, FILTERS, restyled
from editkit.data.toyworld.world import caption_at, face_at
from editkit.errors import UsageError, suggestion

STYLES = tuple(FILTERS)
CATEGORICAL: dict[str, tuple] = {"style": STYLES, **faces.CATEGORICAL}
CONTINUOUS = faces.CONTINUOUS
COLOURS = frozenset({"skin", "shown_hair", "eye_colour", "shirt", "background"})
# What a person cannot tell in pictures of a style that are 64 pixels wide.
HIDDEN: dict[str, frozenset[str]] = {
    "pencil": COLOURS,
    "ink": COLOURS,
    "poster": frozenset({"eye_colour"}),
    "mosaic": frozenset({"eye_colour", "eye_spacing", "brow", "expression", "look", "age"}),
    "neon": frozenset({"skin", "background"}),
}


@dataclass(frozen=True)
class StyledFace(Face):
    """A face and the style that it is drawn in, one of `STYLES`."""

    style: str = "plain"


def in_style(face: Face, style: str) -> StyledFace:
    """Return the counterfactual: the same face in a style.

    Raises:
        UsageError: an unknown style.
    """
    if style not in STYLES:
        raise UsageError(f"the toy world has no style {style!r}.{suggestion(style, STYLES)} There are: {', '.join(STYLES)}")
    return StyledFace(**{field.name: getattr(face, field.name) for field in fields(Face)}, style=style)


def styled_at(split: str, index: int, style: str) -> StyledFace:
    """Return a face of a split in a style.

    Raises:
        UsageError: an unknown split or style.
        ValueError: a negative index.
    """
    return in_style(face_at(split, index), style)


def styled_named(key: str) -> StyledFace:
    """Return the face of an item's key, such as "styles/train/pencil/000012"."""
    _, split, style, number = key.split("/")
    return styled_at(split, int(number), style)


def key_of(split: str, index: int, style: str) -> str:
    """Return the key of a face in a style."""
    return f"styles/{split}/{style}/{index:06d}"


def render(face: StyledFace, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture, uint8 (size, size, 3), and the part labels (size, size), which a style leaves where they are."""
    picture, labels = faces.render(face, size, labels=True)
    assert labels is not None
    return restyled(picture, face.style), labels


def measured(face: StyledFace) -> dict[str, object]:
    """Return the measured factors of a face, its style first."""
    return {"style": face.style, **measured_face(face)}


def visible(face: StyledFace) -> dict[str, bool]:
    """Say for each measured factor whether the picture shows it."""
    lost = HIDDEN.get(face.style, frozenset())
    return {"style": True, **{name: shown and name not in lost for name, shown in faces.visible(face).items()}}


def caption(split: str, index: int, style: str) -> str:
    """Return a text that is true of a face in a style: the style first, then what is true of the face."""
    text = caption_at(split, index).text
    return text if style == "plain" else f"{CALLED[style]} of {text}"
