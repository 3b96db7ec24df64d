"""Instructions and their exact answers: one thing changes, all else stays and is rendered again.

Ten kinds: recolour, reshape, retexture, add, remove, move (one object); place, time, season, restyle (the whole picture).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from editkit.data.toyworld.scenes.captions import BESIDE
from editkit.data.toyworld.scenes.drawing import footprint, surroundings
from editkit.data.toyworld.scenes.factors import (
    COLOURS,
    EVERYWHERE,
    LARGEST,
    MOST,
    PLACES,
    SEASONAL,
    STYLES,
    TEXTURES,
    Scene,
    Thing,
    at_place,
    distinct,
    draw_kind,
    free,
    held_out,
    ordered,
    placed,
)
from editkit.data.toyworld.scenes.shapes import SHAPES
from editkit.data.toyworld.scenes.words import (
    AT_PLACE,
    COLOUR_WORDS,
    IN_STYLE,
    SETTINGS,
    SHAPE_WORDS,
    SIDE_BORDERS,
    SIDE_MARGIN,
    SIDES,
    TEXTURE_WORDS,
    a,
    aspects,
    identity,
    noun,
    pick,
    side_of,
)

TRIES = 40  # for an edit of one kind; after so many the scene has none


@dataclass(frozen=True)
class SceneEdit:
    """An instruction and its exact answer.

    Attributes:
        kind: one of KINDS.
        before, after: the object that changes, in the source and in the target; None where it is not there, both None when
            the whole picture changes.
    """

    kind: str
    instruction: str
    source: Scene
    target: Scene
    before: Thing | None = None
    after: Thing | None = None

    def mask(self, size: int = 64) -> np.ndarray:
        """Return where the source changes: bool (size, size).

        The object before and after with its shadow, and nothing changes outside; all but the objects for a new place, where
        only the blur of their edges changes outside; else everything.
        """
        touched = [
            footprint(thing, scene, size)
            for thing, scene in ((self.before, self.source), (self.after, self.target))
            if thing is not None
        ]
        if touched:
            return np.logical_or.reduce(touched)
        if self.kind == "place":
            return surroundings(self.source, size)
        return np.ones((size, size), dtype=bool)


Maker = Callable[[Scene, np.random.Generator], SceneEdit | None]


def draw_edit(scene: Scene, rng: np.random.Generator, kinds: Sequence[str] = ()) -> SceneEdit | None:
    """Draw an edit of a scene.

    An edit never leads to a held-out combination unless the scene shows one already, and its instruction names its object
    unmistakably.

    Args:
        kinds: what to choose from; all of KINDS by default.

    Returns:
        The edit, or None where the scene has none of these kinds (a scene of one object has nothing to remove).

    Raises:
        KeyError: an unknown kind.
    """
    names = list(kinds or KINDS)
    for number in rng.permutation(len(names)):
        for _ in range(TRIES):
            edit = KINDS[names[number]](scene, rng)
            if edit is not None and _sound(edit):
                return edit
    return None


def name_of(thing: Thing, things: Sequence[Thing], rng: np.random.Generator) -> str | None:
    """Return words that mean this object and no other of these, with "the"; None where there are none."""
    ways = (("shape",), ("shape",), ("colour", "shape"), ("colour", "shape"), ("texture", "shape"), ("size", "shape"))
    others = [other for other in things if other != thing]
    for number in rng.permutation(len(ways)):
        described = {name: value for name, value in aspects(thing).items() if name in ways[number]}
        if set(described) != set(ways[number]) or described.get("texture") == "plain":
            continue
        if not any(described.items() <= aspects(other).items() for other in others):
            return f"the {noun(described, rng)}"
    return None


def _sound(edit: SceneEdit) -> bool:
    return distinct(edit.target.things) and (held_out(edit.source) or not held_out(edit.target))


def _changed(
    kind: str, scene: Scene, rng: np.random.Generator, change: Mapping[str, object], sayings: Sequence[str]
) -> SceneEdit | None:
    """Change one object where it stands; `{}` in the sayings is its name."""
    thing = pick(rng, scene.things)
    name = name_of(thing, scene.things, rng)
    after = replace(thing, **change)  # type: ignore[arg-type]
    if name is None or after == thing:
        return None
    things = tuple(after if other is thing else other for other in scene.things)
    return SceneEdit(kind, pick(rng, sayings).format(name), scene, replace(scene, things=things), thing, after)


def _recolour(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    colour = pick(rng, list(COLOURS))
    word = pick(rng, COLOUR_WORDS[colour])
    sayings = [f"make {{}} {word}", f"change {{}} to {word}", f"turn {{}} {word}", f"paint {{}} {word}", f"{{}} should be {word}"]
    return _changed("recolour", scene, rng, {"colour": colour}, sayings)


def _reshape(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    shape = pick(rng, list(SHAPES))
    word = a(pick(rng, SHAPE_WORDS[shape]))
    sayings = [f"turn {{}} into {word}", f"change {{}} into {word}", f"make {{}} {word}", f"give {{}} the shape of {word}"]
    return _changed("reshape", scene, rng, {"shape": shape}, sayings)


def _retexture(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    texture = pick(rng, TEXTURES)
    word = pick(rng, TEXTURE_WORDS[texture])
    sayings = {
        "plain": ("remove the pattern from {}", "take the pattern off {}"),
        "striped": ("give {} stripes", "put stripes on {}"),
        "dotted": ("give {} dots", "put dots on {}"),
    }[texture]
    return _changed("retexture", scene, rng, {"texture": texture}, [f"make {{}} {word}", *sayings])


def _add(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    if len(scene.things) >= MOST:
        return None
    side = pick(rng, list(SIDES))
    thing = placed(draw_kind(rng), scene.things, rng, largest=LARGEST[-1], columns=_columns(side))
    if thing is None:
        return None
    words = noun(identity(thing), rng)
    saying = pick(rng, ("add {} {}", "put {} {}", "place {} {}", "draw {} {}", "there should be {} {}"))
    target = replace(scene, things=ordered([*scene.things, thing]))
    return SceneEdit("add", saying.format(a(words), SIDES[side]), scene, target, None, thing)


def _remove(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    if len(scene.things) < 2:
        return None
    thing = pick(rng, scene.things)
    name = _related(thing, scene, rng) if rng.random() < 0.25 else name_of(thing, scene.things, rng)
    if name is None:
        return None
    saying = pick(rng, ("remove {}", "delete {}", "erase {}", "take away {}", "take {} away", "get rid of {}"))
    things = tuple(other for other in scene.things if other is not thing)
    return SceneEdit("remove", saying.format(name), scene, replace(scene, things=things), thing, None)


def _move(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    thing = pick(rng, scene.things)
    side, name = pick(rng, list(SIDES)), name_of(thing, scene.things, rng)
    low, high = _columns(side)
    after = replace(thing, x=float(rng.uniform(max(low, thing.size), min(high, 1 - thing.size))))
    others = [other for other in scene.things if other is not thing]
    if name is None or side_of(thing) in (side, None) or not free(after, others):
        return None
    where = {"left": "to the left", "middle": "to the middle", "right": "to the right"}[side]
    saying = pick(rng, ("move {} {}", "shift {} {}", "bring {} {}", "push {} {}"))
    things = tuple(after if other is thing else other for other in scene.things)
    return SceneEdit("move", saying.format(name, where), scene, replace(scene, things=things), thing, after)


def _place(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    place = pick(rng, PLACES)
    if place == scene.place:
        return None
    there, setting = AT_PLACE[place][0], pick(rng, SETTINGS[place])
    sayings = [f"change the background to {setting}", f"replace the background with {setting}", f"make the background {setting}"]
    everything = "it" if len(scene.things) == 1 else "them"
    saying = pick(rng, [*sayings, f"put {everything} {there}", f"show {everything} {there}"])
    return SceneEdit("place", saying, scene, at_place(scene, place))


def _time(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    time, sayings = {
        "day": ("night", ("make it night", "turn day into night", "show it at night", "let night fall")),
        "night": ("day", ("make it day", "turn night into day", "show it by day", "let it be daytime")),
    }[scene.time]
    return SceneEdit("time", pick(rng, sayings), scene, replace(scene, time=time))


def _season(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    if scene.place not in SEASONAL:
        return None
    season, sayings = {
        "summer": ("winter", ("make it winter", "turn summer into winter", "let it snow", "cover the ground with snow")),
        "winter": ("summer", ("make it summer", "turn winter into summer", "melt the snow", "remove the snow")),
    }[scene.season]
    return SceneEdit("season", pick(rng, sayings), scene, replace(scene, season=season))


def _restyle(scene: Scene, rng: np.random.Generator) -> SceneEdit | None:
    style = pick(rng, STYLES)
    if style in (scene.style, "plain"):
        return None
    words = pick(rng, IN_STYLE[style])
    saying = pick(rng, (f"turn it into {words}", f"make it {words}", f"make it look like {words}", f"as {words}"))
    return SceneEdit("restyle", saying, scene, replace(scene, style=style))


def _columns(side: str) -> tuple[float, float]:
    """Return where the centre of an object lies that clearly stands on a side."""
    left, right = SIDE_BORDERS
    return {
        "left": (EVERYWHERE[0], left - SIDE_MARGIN),
        "middle": (left + SIDE_MARGIN, right - SIDE_MARGIN),
        "right": (right + SIDE_MARGIN, EVERYWHERE[1]),
    }[side]


def _related(thing: Thing, scene: Scene, rng: np.random.Generator) -> str | None:
    """Name an object by another one: "the star left of the cup"; None where that would not be clear."""
    other = pick(rng, [o for o in scene.things if o is not thing])
    anchor = name_of(other, scene.things, rng)
    if anchor is None or abs(thing.x - other.x) < BESIDE:
        return None
    word = "left" if thing.x < other.x else "right"
    return f"the {pick(rng, SHAPE_WORDS[thing.shape])} {word} of {anchor}" if _only(thing, other, scene, word) else None


def _only(thing: Thing, anchor: Thing, scene: Scene, word: str) -> bool:
    """Whether no other object of this shape is on that side of the anchor."""
    sign = 1 if word == "left" else -1
    return not any(o.shape == thing.shape and sign * (anchor.x - o.x) > 0 for o in scene.things if o not in (thing, anchor))


KINDS: Mapping[str, Maker] = MappingProxyType(
    {
        "recolour": _recolour,
        "reshape": _reshape,
        "retexture": _retexture,
        "add": _add,
        "remove": _remove,
        "move": _move,
        "place": _place,
        "time": _time,
        "season": _season,
        "restyle": _restyle,
    }
)
OF_OBJECTS = ("recolour", "reshape", "retexture", "add", "remove", "move")
