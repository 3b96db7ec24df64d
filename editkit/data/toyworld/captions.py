"""Captions of faces: many paraphrases of any subset of the factors, each with the claims it makes.

Claims decide whether a caption is TRUE of another face, which is what contrastive training needs: "a smiling face" is a
right caption of every smiling face of the batch, not only of the one that it was drawn for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from editkit.data.toyworld.claims import Claims, measured, merged, satisfied, satisfied_matrix, unclear_matrix
from editkit.data.toyworld.faces import Face
from editkit.data.toyworld.phrases import LINKS, TOPICS, Phrase, article, phrases

T = TypeVar("T")

# Frames around a noun phrase that brings its own article; the bare phrase first.
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a portrait of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a cartoon of {}",
    "an illustration of {}",
    "a painting of {}",
    "a rendering of {}",
    "a close-up of {}",
    "a good photo of {}",
    "a bad photo of {}",
    "a blurry photo of {}",
    "a bright photo of {}",
    "a cropped photo of {}",
    "a small picture of {}",
    "a low resolution photo of {}",
    "a simple drawing of {}",
    "this is {}",
    "there is {}",
)
NOUNS = ("face", "person", "head", "human face", "human", "cartoon face")
GENDERED = {
    "masculine": ("man", "man", "guy", "male face", "gentleman", "man's face"),
    "feminine": ("woman", "woman", "lady", "female face", "woman's face"),
}
SUBJECTS = ("the person", "this person", "the face", "this face", "someone who")
GENDERED_SUBJECTS = {"masculine": ("the man", "he", "this man"), "feminine": ("the woman", "she", "this woman")}
# How often a topic is spoken of, relative to the others.
WEIGHTS = {
    "expression": 3.0,
    "age": 2.5,
    "glasses": 2.0,
    "hair": 2.0,
    "beard": 1.2,
    "eyes": 0.8,
    "skin": 0.8,
    "brow": 0.6,
    "shirt": 0.8,
    "background": 0.8,
}
ADJECTIVES = ("expression", "age")  # topics whose shortest caption is an adjective
HOW_MANY = (0.04, 0.42, 0.22, 0.13, 0.08, 0.05, 0.03, 0.01, 0.01, 0.0, 0.01)  # chance of 0, 1, 2, ... topics


@dataclass(frozen=True)
class Caption:
    """A text and what it asserts: for each claimed factor the values that make it true (ages by group)."""

    text: str
    claims: Claims = field(default_factory=dict)


PLAIN = tuple(
    Caption(text)
    for text in (
        "a face",
        "a photo of a face",
        "a picture of a face",
        "a portrait",
        "a person",
        "a photo of a person",
        "face",
        "a cartoon face",
        "a head",
    )
)


def caption(face: Face, rng: np.random.Generator) -> Caption:
    """Draw a caption that is true of the face and can be checked on its picture."""
    count = int(rng.choice(len(HOW_MANY), p=HOW_MANY))
    form = rng.random()
    if count == 1 and form < 0.3:
        return _short(face, rng)
    gendered = bool(rng.random() < 0.25)
    if count == 0 and not gendered:
        return pick(rng, PLAIN)
    if count and form < 0.4:
        return _sentence(face, rng, _topics(face, count, rng, without=("background",)), gendered)
    if count and form < 0.5:
        return _tags(face, rng, _topics(face, count, rng))
    return _noun_phrase(face, rng, _topics(face, count, rng), gendered)


def noun_phrase(face: Face, rng: np.random.Generator) -> Caption:
    """Draw words that name the face and bring their own article, "a smiling old woman with glasses": no sentence, no frame."""
    count = int(rng.choice(len(HOW_MANY), p=HOW_MANY))
    return _described(face, rng, _topics(face, count, rng), gendered=bool(rng.random() < 0.25))


def holds(caption: Caption, face: Face) -> bool:
    """Say whether a caption is true of a face."""
    return satisfied(caption.claims, measured(face))


def holds_matrix(captions: Sequence[Caption], faces: Sequence[Face]) -> np.ndarray:
    """Return a bool array (len(captions), len(faces)): `holds` of every pair."""
    return satisfied_matrix([caption.claims for caption in captions], faces)


def unclear_pairs(captions: Sequence[Caption], faces: Sequence[Face]) -> np.ndarray:
    """Return a bool array (len(captions), len(faces)): pairs whose truth cannot be seen, best left out of a loss."""
    return unclear_matrix([caption.claims for caption in captions], faces)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]


def _topics(face: Face, count: int, rng: np.random.Generator, without: tuple[str, ...] = ()) -> list[str]:
    names = [name for name in TOPICS if name not in without and phrases(name, face)]
    weights = np.array([WEIGHTS[name] for name in names])
    return [str(name) for name in rng.choice(names, size=min(count, len(names)), replace=False, p=weights / weights.sum())]


def _short(face: Face, rng: np.random.Generator) -> Caption:
    """The plainest words: "a smiling face", "a face with glasses"; what a person types as the target of an edit."""
    topic = _topics(face, 1, rng)[0]
    every = phrases(topic, face)
    claims = pick(rng, [p for k, p in enumerate(every) if p.claims not in [q.claims for q in every[:k]]]).claims
    slot = "before" if topic in ADJECTIVES or (face.hair_style == "bald" and topic == "hair") else "after"
    phrase = next(p for p in every if p.claims == claims and p.slot == slot)
    if slot == "before":
        return Caption(f"{article(phrase.text)} {phrase.text} {NOUNS[0]}", claims)
    return Caption(f"{article(NOUNS[0])} {NOUNS[0]} {phrase.link} {phrase.text}", claims)


def _noun_phrase(face: Face, rng: np.random.Generator, topics: list[str], gendered: bool) -> Caption:
    """For example "a smiling old woman with glasses and blue eyes in a red shirt", in one of the templates."""
    said = _described(face, rng, topics, gendered)
    frame = TEMPLATES[0] if rng.random() < 0.5 else pick(rng, TEMPLATES)
    return Caption(frame.format(said.text), said.claims)


def _described(face: Face, rng: np.random.Generator, topics: list[str], gendered: bool) -> Caption:
    chosen = [pick(rng, [p for p in phrases(topic, face) if p.slot != "does"]) for topic in topics]
    before = [p.text for p in sorted(chosen, key=_adjective_order) if p.slot == "before"]
    noun = pick(rng, GENDERED[face.look]) if gendered else NOUNS[0] if rng.random() < 0.6 else pick(rng, NOUNS)
    words = " ".join([*before, noun])
    text = " ".join(filter(None, [article(words), words, _after(chosen)]))
    look: Claims = {"look": (face.look,)} if gendered else {}
    return Caption(text, merged(look, *(p.claims for p in chosen)))


def _adjective_order(phrase: Phrase) -> int:
    order = ("expression", "age", "skin", "eye_colour", "shown_hair", "hair_style", "glasses", "beard")
    return min((order.index(name) for name in phrase.claims if name in order), default=len(order))


def _after(chosen: list[Phrase]) -> str:
    parts = []
    for link in LINKS:
        things = [p.text for p in chosen if p.slot == "after" and p.link == link]
        if things:
            parts.append(f"{link} {_listed(things)}")
    return " ".join(parts)


def _listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _sentence(face: Face, rng: np.random.Generator, topics: list[str], gendered: bool) -> Caption:
    """For example "the person is smiling, wears glasses and has blue eyes"."""
    chosen = [pick(rng, [p for p in phrases(topic, face) if p.slot == "does"]) for topic in topics]
    subject = pick(rng, GENDERED_SUBJECTS[face.look] if gendered else SUBJECTS)
    look: Claims = {"look": (face.look,)} if gendered else {}
    return Caption(f"{subject} {_listed([p.text for p in chosen])}", merged(look, *(p.claims for p in chosen)))


def _tags(face: Face, rng: np.random.Generator, topics: list[str]) -> Caption:
    """For example "smiling, no glasses, red shirt"."""
    chosen = [pick(rng, [p for p in phrases(topic, face) if p.slot != "does"]) for topic in topics]
    return Caption(", ".join(_tag(p) for p in chosen), merged(*(p.claims for p in chosen)))


def _tag(phrase: Phrase) -> str:
    thing = phrase.text.removeprefix("a ").removeprefix("an ")
    return f"no {thing}" if phrase.link == "without" else thing
