"""Scenes: the factors that describe one, and how they are drawn at random.

A scene is a pure function of its factors, so changing one factor and rendering again gives the exact answer to an edit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from editkit.data.toyworld.canvas import Colour
from editkit.data.toyworld.scenes.shapes import SHAPES

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 40),
    "orange": (250, 134, 16),
    "yellow": (252, 222, 28),
    "green": (22, 142, 52),
    "cyan": (42, 204, 214),
    "blue": (36, 68, 214),
    "purple": (126, 40, 178),
    "pink": (252, 124, 190),
}
TEXTURES = ("plain", "striped", "dotted")
PLACES = ("meadow", "beach", "mountains", "street", "room", "sky")
SEASONAL = ("meadow", "beach", "mountains", "street")  # where summer and winter can be told apart
TIMES = ("day", "night")
SEASONS = ("summer", "winter")
STYLES = ("plain", "pencil", "poster", "mosaic", "neon")
# What a person cannot tell in pictures of a style that are 64 pixels wide.
HIDDEN: dict[str, frozenset[str]] = {
    "pencil": frozenset({"colour", "season"}),
    "mosaic": frozenset({"shape", "texture"}),
    "neon": frozenset({"time", "season"}),
}
READABLE = frozenset({"place", "time", "season", "style", "count", "shape", "colour", "texture"})

# Combinations that only the split "heldout" shows.
HELD_OUT = frozenset({("star", "green"), ("heart", "blue"), ("fish", "purple"), ("cup", "orange"), ("arrow", "red")})

MOST = 4  # objects in a scene
LARGEST = (0.22, 0.20, 0.175, 0.155)  # half side of the largest object where there are 1, 2, 3, 4
SMALLEST = 0.12
EVERYWHERE = (0.0, 1.0)  # columns where a centre may lie, as far as the object fits into the picture
HIGH, LOW = 0.62, 0.95  # where the feet may stand
APART = 0.68  # centres are at least this share of the sum of the sizes apart: what is behind stays recognisable
TRIES = 60  # for a free place; after so many the scene is full


@dataclass(frozen=True)
class Thing:
    """One object. `x`, `y` (its centre) and `size` (half its height) are fractions of the image side, `angle` degrees."""

    shape: str
    colour: str
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.65
    size: float = 0.18
    angle: float = 0.0

    @property
    def feet(self) -> float:
        """How far down it stands: what stands lower is nearer."""
        return self.y + self.size


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture.

    Attributes:
        things: the objects from far to near; nearer ones hide farther ones.
        light: where the light comes from, -1 (left) to 1 (right).
        exposure: brightness; not a measured factor.
        layout: 0 to 1, where trees, houses and clouds stand; not a measured factor.
    """

    things: tuple[Thing, ...]
    place: str = "meadow"
    time: str = "day"
    season: str = "summer"
    style: str = "plain"
    light: float = -0.6
    exposure: float = 1.0
    layout: float = 0.3


def measured(scene: Scene) -> dict[str, object]:
    """Return the measured factors of a scene; `things` is a list of dicts from far to near."""
    things = [{name: getattr(thing, name) for name in Thing.__dataclass_fields__} for thing in scene.things]
    whole = {name: getattr(scene, name) for name in ("place", "time", "season", "style", "light")}
    return {**whole, "count": len(things), "things": things}


def visible(scene: Scene) -> dict[str, bool]:
    """Say for each measured factor whether the picture shows it: rooms and the sky have no season, a style hides some."""
    flags = dict.fromkeys(measured(scene), True)
    flags["season"] = scene.place in SEASONAL
    return {name: shown and name not in HIDDEN.get(scene.style, ()) for name, shown in flags.items()}


def readable(scene: Scene) -> frozenset[str]:
    """Return what can be read in the picture: factors of the whole, and aspects of the objects (shape, colour, texture)."""
    lost = HIDDEN.get(scene.style, frozenset())
    return READABLE - lost - (frozenset() if scene.place in SEASONAL else {"season"})


def held_out(scene: Scene) -> bool:
    """Whether the scene shows one of the combinations that are kept out of train, validation and test."""
    return any((thing.shape, thing.colour) in HELD_OUT for thing in scene.things)


def ordered(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Return objects from far to near."""
    return tuple(sorted(things, key=lambda thing: thing.feet))


def at_place(scene: Scene, place: str) -> Scene:
    """Return the same objects elsewhere; where a place has no season it is summer."""
    return replace(scene, place=place, season=scene.season if place in SEASONAL else "summer")


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of one to four objects at random; no two of them share both shape and colour."""
    count = int(rng.choice(MOST, p=(0.2, 0.35, 0.25, 0.2))) + 1
    things: list[Thing] = []
    while len(things) < count:
        thing = placed(draw_kind(rng), things, rng, largest=LARGEST[count - 1])
        if thing is None:
            break
        if distinct([*things, thing]):
            things.append(thing)
    place = str(rng.choice(PLACES))
    return Scene(
        ordered(things),
        place,
        time=str(rng.choice(TIMES, p=(0.65, 0.35))),
        season=str(rng.choice(SEASONS)) if place in SEASONAL else "summer",
        light=float(rng.choice((-1, 1)) * rng.uniform(0.4, 1.0)),
        exposure=float(rng.uniform(0.95, 1.05)),
        layout=float(rng.random()),
    )


def draw_kind(rng: np.random.Generator) -> Thing:
    """Draw what an object is, upright in the middle."""
    texture = rng.choice(TEXTURES, p=(0.5, 0.25, 0.25))
    return Thing(str(rng.choice(list(SHAPES))), str(rng.choice(list(COLOURS))), str(texture))


def placed(
    thing: Thing,
    others: Sequence[Thing],
    rng: np.random.Generator,
    *,
    largest: float,
    columns: tuple[float, float] = EVERYWHERE,
) -> Thing | None:
    """Return an object at a random free place and of a random size and angle, or None where nothing is free.

    Args:
        others: the objects it must not hide.
        largest: half side of the largest size.
        columns: where its centre may lie.
    """
    for _ in range(TRIES):
        size = float(rng.uniform(SMALLEST, largest))
        y = float(rng.uniform(HIGH, LOW)) - size
        x = float(rng.uniform(max(columns[0], size), min(columns[1], 1 - size)))
        moved = replace(thing, x=x, y=y, size=size, angle=float(rng.uniform(-25, 25)))
        if free(moved, others):
            return moved
    return None


def free(thing: Thing, others: Sequence[Thing]) -> bool:
    """Whether an object and those around it all stay recognisable."""
    return all(math.hypot(thing.x - o.x, thing.y - o.y) >= APART * (thing.size + o.size) for o in others)


def distinct(things: Sequence[Thing]) -> bool:
    """Whether shape and colour together name each object."""
    return len({(thing.shape, thing.colour) for thing in things}) == len(things)
