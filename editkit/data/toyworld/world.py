"""The toy world: its domains, the faces of each split, and named edits of faces with their exact answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from editkit.data.toyworld import animals
from editkit.data.toyworld.captions import Caption, caption
from editkit.data.toyworld.claims import Claims, measured, satisfied, unclear
from editkit.data.toyworld.faces import CATEGORICAL, PARTS, Face, draw_face, edited, held_out, render, visible
from editkit.data.toyworld.samples import SPLITS as SPLITS
from editkit.data.toyworld.samples import Domain, Sample, seed
from editkit.data.toyworld.scenes import world as scenes
from editkit.errors import UsageError, suggestion

CAPTION_STREAM = 1  # keeps the captions' random numbers apart from the faces'
SOURCE_PROMPT = "a face"


@dataclass(frozen=True)
class Edit:
    """A named edit of a face.

    Attributes:
        prompt: what a text-driven method is told; it starts from SOURCE_PROMPT.
        changes: the fields of `Face` that change in the exact answer.
        target: the claims that a successful edit makes true.
        applies: claims that a source must fulfil for the edit to make sense.
    """

    name: str
    prompt: str
    changes: Mapping[str, object]
    target: Claims
    applies: Claims = field(default_factory=dict)
    source_prompt: str = SOURCE_PROMPT

    def done(self, factors: Mapping[str, object]) -> bool:
        """Say whether measured factors (of a face or read by the oracle; age in years) show the target."""
        return satisfied(self.target, factors)

    def eligible(self, face: Face) -> bool:
        """Say whether a face is a source of this edit: it does not show the target yet, and the edit applies to it.

        Half-grey hair is no source of a hair colour: nobody could tell what it is before or after.
        """
        factors = measured(face)
        greying = "shown_hair" in self.target and "shown_hair" in unclear(face)
        return satisfied(self.applies, factors) and not self.done(factors) and not greying


def _edits() -> Iterator[Edit]:
    for value in ("smiling", "angry", "sad", "neutral"):
        article = "an" if value == "angry" else "a"
        yield Edit(value, f"{article} {value} face", {"expression": value}, {"expression": (value,)})
    yield Edit("old", "an old face", {"age": 75.0}, {"age": ("old",)})
    # Years below 42 leave no trace in the picture, so only an old face has something to lose.
    yield Edit("young", "a young face", {"age": 25.0}, {"age": ("young",)}, {"age": ("old",)})
    yield Edit("with glasses", "a face with glasses", {"glasses": True}, {"glasses": (True,)})
    yield Edit("without glasses", "a face without glasses", {"glasses": False}, {"glasses": (False,)})
    yield Edit("with beard", "a face with a beard", {"beard": True}, {"beard": (True,)}, {"look": ("masculine",)})
    yield Edit("without beard", "a face without a beard", {"beard": False}, {"beard": (False,)})
    for colour in ("black", "brown", "blond", "red", "grey"):
        young: Claims = (
            {} if colour == "grey" else {"age": ("young", "middle-aged"), "shown_hair": ("black", "brown", "blond", "red")}
        )
        applies = {"hair_style": ("short", "long"), **young}
        yield Edit(f"{colour} hair", f"a face with {colour} hair", {"hair_colour": colour}, {"shown_hair": (colour,)}, applies)
    for style, prompt in (
        ("bald", "a bald face"),
        ("short hair", "a face with short hair"),
        ("long hair", "a face with long hair"),
    ):
        value = style.removesuffix(" hair")
        yield Edit(style, prompt, {"hair_style": value}, {"hair_style": (value,)})
    yield Edit("masculine", "a man", {"look": "masculine"}, {"look": ("masculine",)})
    yield Edit("feminine", "a woman", {"look": "feminine"}, {"look": ("feminine",)}, {"beard": (False,)})


EDITS: Mapping[str, Edit] = MappingProxyType({edit.name: edit for edit in _edits()})


def find_edit(name: str) -> Edit:
    """Return the edit with this name ("with glasses", also "with-glasses" or "with_glasses") or this prompt.

    Raises:
        UsageError: no such edit.
    """
    plain = name.strip().lower().replace("-", " ").replace("_", " ")
    for edit in EDITS.values():
        if plain in (edit.name, edit.prompt):
            return edit
    raise UsageError(f"no edit of the toy faces is called {name!r}.{suggestion(plain, EDITS)} There are: {', '.join(EDITS)}")


def face_of(look: str, split: str, index: int) -> Face:
    """Return a face of a look of a split: `face_at` where that has it, else what is drawn next.

    Raises:
        UsageError: an unknown look or split.
        ValueError: a negative index.
    """
    looks = CATEGORICAL["look"]
    if look not in looks:
        raise UsageError(f"no face looks {look!r}.{suggestion(look, looks)} There are: {', '.join(looks)}")
    rng = np.random.default_rng(seed(split, index))
    face = draw_face(rng)
    while face.look != look or held_out(face) != (split == "heldout"):
        face = draw_face(rng)
    return face


def counterfactual(face: Face, edit_name: str) -> Face:
    """Return the exact answer to a named edit: the same face with only the edited factors changed."""
    return edited(face, **find_edit(edit_name).changes)


@lru_cache(maxsize=8192)
def face_at(split: str, index: int) -> Face:
    """Return a face of a split; splits are disjoint, and only "heldout" shows the held-out combinations of factors.

    Raises:
        UsageError: an unknown split.
        ValueError: a negative index.
    """
    rng = np.random.default_rng(seed(split, index))
    face = draw_face(rng)
    while held_out(face) != (split == "heldout"):
        face = draw_face(rng)
    return face


def caption_at(split: str, index: int) -> Caption:
    """Return the caption that belongs to a face of a split."""
    return caption(face_at(split, index), np.random.default_rng(seed(split, index, CAPTION_STREAM)))


def sample_at(split: str, index: int, size: int = 64) -> Sample:
    """Render a face of a split with its caption, factors, visibility and part labels."""
    face = face_at(split, index)
    image, labels = render(face, size, labels=True)
    words = caption(face, np.random.default_rng(seed(split, index, CAPTION_STREAM)))
    assert labels is not None
    return Sample(f"faces/{split}/{index:06d}", image, words, measured(face), visible(face), labels, face)


def sources(edit: Edit, split: str, count: int) -> list[int]:
    """Return the first `count` indices of a split whose faces are sources of the edit."""
    found: list[int] = []
    index = 0
    while len(found) < count:
        if edit.eligible(face_at(split, index)):
            found.append(index)
        index += 1
    return found


DOMAINS: Mapping[str, Domain] = MappingProxyType(
    {"faces": Domain("faces", PARTS, sample_at), "animals": animals.DOMAIN, "scenes": scenes.DOMAIN}
)
