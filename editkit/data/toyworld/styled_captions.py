"""Captions of faces in styles, with the claims that they make; a caption that names no style is of a plain picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from editkit.data.toyworld import captions
from editkit.data.toyworld.captions import Caption, noun_phrase, pick
from editkit.data.toyworld.styled import HIDDEN, StyledFace
from editkit.data.toyworld.styles import CALLED

# Other names of the styles, beside `CALLED`.
ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "pencil": ("a pencil sketch", "a grey pencil drawing"),
    "ink": ("an ink sketch", "a pen and ink drawing"),
    "poster": ("a flat poster", "a printed poster"),
    "mosaic": ("a tile mosaic", "a mosaic of tiles"),
    "watercolour": ("a watercolour", "a pale watercolour painting"),
    "neon": ("a glowing neon sign", "neon lights"),
}
FRAMES = ("{style} of {face}", "{face} as {style}", "{style} that shows {face}", "{face}, {style}")  # the first is the usual one


def told(face: str, style: str, rng: np.random.Generator) -> str:
    """Return words for a face in a style, in half of the draws "a pencil drawing of ..."; in plain they stay as they are."""
    if style == "plain":
        return face
    usual = rng.random() < 0.5
    called, frame = (CALLED[style], FRAMES[0]) if usual else (pick(rng, (CALLED[style], *ALSO_CALLED[style])), pick(rng, FRAMES))
    return frame.format(style=called, face=face)


def caption(face: StyledFace, rng: np.random.Generator) -> Caption:
    """Draw a caption that is true of a face in a style, and speaks of nothing that the style hides."""
    if face.style == "plain":
        said = captions.caption(face, rng)
    else:
        said = noun_phrase(face, rng)
        while not HIDDEN.get(face.style, frozenset()).isdisjoint(said.claims):
            said = noun_phrase(face, rng)
    return Caption(told(said.text, face.style, rng), {**said.claims, "style": (face.style,)})


def truth(told: Sequence[Caption], faces: Sequence[StyledFace]) -> tuple[np.ndarray, np.ndarray]:
    """Return bool (N, M) twice: which captions are true of which faces, and of which that can be seen.

    What a style hides cannot be seen, but a caption of another style is false in any case.
    """
    fits = np.array([[face.style in one.claims["style"] for face in faces] for one in told])
    lost = [HIDDEN.get(face.style, frozenset()) for face in faces]
    hidden = np.array([[not of_style.isdisjoint(one.claims) for of_style in lost] for one in told])
    true = fits & captions.holds_matrix(told, faces)
    return true, ~fits | ~(hidden | captions.unclear_pairs(told, faces))
