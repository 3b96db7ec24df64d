"""What can be said of a face: claims that a caption or an edit makes, and whether they are true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from editkit.data.toyworld.faces import CATEGORICAL, CONTINUOUS, GREY_FROM, GREY_TO, OLD, YOUNG, Face

AGES = ("young", "middle-aged", "old")
# The values a claim may name, by measured factor; an age is claimed by its group.
SAYABLE: dict[str, tuple] = {**CATEGORICAL, "age": AGES}

# Wrinkles start at 42, so the years up to here look young; near OLD a few years decide what nobody can see.
LOOKS_YOUNG, OLD_MARGIN = 47.0, 3.0

Claims = Mapping[str, tuple]  # measured factor -> the values that make the claim true


def age_group(age: float) -> str:
    """Name the group that captions use for an age in years."""
    return "old" if age >= OLD else "young" if age <= YOUNG else "middle-aged"


def measured(face: Face) -> dict[str, object]:
    """Return the measured factors of a face, age in years; which of them can be seen is `faces.visible`."""
    return {name: getattr(face, name) for name in (*CATEGORICAL, *CONTINUOUS)}


def satisfied(claims: Claims, factors: Mapping[str, object]) -> bool:
    """Say whether measured factors (age in years) fulfil every claim; no claims are always true.

    Raises:
        KeyError: a claim about a factor that was not measured.
    """
    return all(_said(name, factors[name]) in values for name, values in claims.items())


def satisfied_matrix(claims: Sequence[Claims], faces: Sequence[Face]) -> np.ndarray:
    """Return a bool array (len(claims), len(faces)): which claims are true of which faces.

    The same answers as `satisfied` for every pair, fast enough for the batches of contrastive training.
    """
    truth = np.ones((len(claims), len(faces)), dtype=bool)
    for name, values in SAYABLE.items():
        codes = np.array([values.index(_said(name, getattr(face, name))) for face in faces], dtype=np.int64)
        allowed = np.array([[value in claim.get(name, values) for value in values] for claim in claims], dtype=bool)
        truth &= allowed.reshape(len(claims), len(values))[:, codes]
    return truth


def unclear(face: Face) -> frozenset[str]:
    """Name the factors whose claims nobody could check on the picture: an age near a border, hair half way to grey."""
    names = set()
    if YOUNG < face.age < LOOKS_YOUNG or abs(face.age - OLD) < OLD_MARGIN:
        names.add("age")
    greyness = (face.age - GREY_FROM) / (GREY_TO - GREY_FROM)
    if face.hair_colour != "grey" and 0.2 < greyness < 0.8:
        names.add("shown_hair")
    return frozenset(names)


def unclear_matrix(claims: Sequence[Claims], faces: Sequence[Face]) -> np.ndarray:
    """Return a bool array (len(claims), len(faces)): pairs that contrastive training should leave out."""
    doubt = {name: np.array([name in unclear(face) for face in faces]) for name in ("age", "shown_hair")}
    unsure = np.zeros((len(claims), len(faces)), dtype=bool)
    for name, faces_in_doubt in doubt.items():
        unsure |= np.array([name in claim for claim in claims])[:, None] & faces_in_doubt[None, :]
    return unsure


def merged(*claims: Claims) -> dict[str, tuple]:
    """Join claims: all of them must be true."""
    together: dict[str, tuple] = {}
    for claim in claims:
        for name, values in claim.items():
            together[name] = tuple(value for value in together.get(name, values) if value in values)
    return together


def _said(name: str, value: object) -> object:
    return age_group(value) if name == "age" else value  # type: ignore[arg-type]
