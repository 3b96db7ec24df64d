"""The words for what a scene shows; `captions` and `edits` join them into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from editkit.data.toyworld.phrases import article
from editkit.data.toyworld.scenes.factors import Thing

T = TypeVar("T")

# The first word is the plain one. No two shapes, colours or textures share a word.
SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "arrow": ("arrow",),
    "flower": ("flower", "blossom"),
    "fish": ("fish",),
    "cup": ("cup", "mug"),
    "mushroom": ("mushroom", "toadstool"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue", "dark blue"),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "unpatterned"),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
SIDES: dict[str, str] = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
# Where a place is, after the objects; the noun phrase for it follows from `SETTINGS`.
AT_PLACE: dict[str, tuple[str, ...]] = {
    "meadow": ("on a meadow", "in a field", "in front of trees", "in the countryside"),
    "beach": ("on a beach", "at the seaside", "by the sea"),
    "mountains": ("in the mountains", "in front of mountains"),
    "street": ("in a street", "in a town", "in front of houses"),
    "room": ("in a room", "indoors", "in front of a window"),
    "sky": ("in the sky", "among clouds", "up in the clouds"),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "meadow": ("a meadow", "a field"),
    "beach": ("a beach", "the seaside"),
    "mountains": ("the mountains", "a mountain landscape"),
    "street": ("a street", "a town"),
    "room": ("a room", "an indoor scene"),
    "sky": ("the sky", "a sky with clouds"),
}
AT_TIME: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in daylight", "during the day"),
    "night": ("at night", "by night", "in the dark"),
}
IN_SEASON: dict[str, tuple[str, ...]] = {
    "summer": ("in summer", "without snow", "in the warm season"),
    "winter": ("in winter", "in the snow", "with snow on the ground"),
}
IN_STYLE: dict[str, tuple[str, ...]] = {
    "pencil": ("a pencil drawing", "a pencil sketch"),
    "poster": ("a poster", "a poster print"),
    "mosaic": ("a mosaic", "a mosaic of tiles"),
    "neon": ("a neon sign", "a neon picture"),
}
COUNTS = ("no objects", "one object", "two objects", "three objects", "four objects")

# Between these nobody could say whether it is so, and captions do not.
SMALL, LARGE = 0.135, 0.175
SIDE_BORDERS, SIDE_MARGIN = (0.37, 0.63), 0.04


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of the options."""
    return options[int(rng.integers(len(options)))]


def size_of(thing: Thing) -> str | None:
    """Name the size of an object, None where it is between."""
    return "small" if thing.size <= SMALL else "large" if thing.size >= LARGE else None


def side_of(thing: Thing) -> str | None:
    """Name the third of the picture that an object stands in, None near a border."""
    left, right = SIDE_BORDERS
    if min(abs(thing.x - left), abs(thing.x - right)) < SIDE_MARGIN:
        return None
    return "left" if thing.x < left else "right" if thing.x > right else "middle"


def aspects(thing: Thing) -> dict[str, str]:
    """Return what can be said of an object: shape, colour, texture, and size and side where they are clear."""
    said = {"shape": thing.shape, "colour": thing.colour, "texture": thing.texture}
    unsure = {"size": size_of(thing), "side": side_of(thing)}
    return said | {name: value for name, value in unsure.items() if value is not None}


def identity(thing: Thing) -> dict[str, str]:
    """Return what an object is: shape, colour, and texture where it has one."""
    said = {"shape": thing.shape, "colour": thing.colour}
    return said if thing.texture == "plain" else said | {"texture": thing.texture}


def noun(description: dict[str, str], rng: np.random.Generator | None = None) -> str:
    """Put aspects into words without an article: "small striped red star"; with a generator also in other words."""
    tables = (("size", SIZE_WORDS), ("texture", TEXTURE_WORDS), ("colour", COLOUR_WORDS), ("shape", SHAPE_WORDS))
    chosen = [table[description[name]] for name, table in tables if name in description]
    words = [options[0] if rng is None or rng.random() < 0.6 else pick(rng, options) for options in chosen]
    return " ".join(words) if "shape" in description else " ".join([*words, "object"])


def a(words: str) -> str:
    """Put "a" or "an" before words."""
    return f"{article(words)} {words}"


def listed(things: Sequence[str]) -> str:
    """Join words: "a, b and c"."""
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
