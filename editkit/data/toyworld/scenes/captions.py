"""Captions of scenes and of single objects: paraphrases of any subset of the facts, each with the claims it makes.

The claims of a scene name values of place, time, season, style and count; "things" holds a description of each object that
is spoken of, and "left_of" pairs of their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.claims import Claims
from editkit.data.toyworld.scenes.factors import SEASONAL, Scene, Thing, measured
from editkit.data.toyworld.scenes.words import (
    AT_PLACE,
    AT_TIME,
    COUNTS,
    IN_SEASON,
    IN_STYLE,
    SETTINGS,
    SIDES,
    a,
    aspects,
    listed,
    noun,
    pick,
)

FRAMES = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a view of {}", "a scene with {}", "this is {}")
SAID = {"colour": 0.75, "texture": 0.35, "size": 0.15, "side": 0.15}  # how often an aspect is mentioned
WHOLE = {"place": 0.45, "time": 0.3, "season": 0.3}  # how often a fact about the whole scene is
BESIDE = 0.2  # of two objects, apart as far as this, one is called left of the other


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Draw a caption that is true of the scene and can be checked on its picture."""
    facts = _facts(scene, rng)
    form = rng.random()
    if scene.things and form < 0.1:
        return _count(scene, facts)
    if form < 0.2:
        return _setting(scene, rng, facts)
    return _objects(scene, rng, facts)


def full_caption(scene: Scene) -> Caption:
    """Return the plain caption that names every object, the place, the time and the season."""
    described = [
        {name: value for name, value in aspects(thing).items() if name not in ("size", "side")} for thing in scene.things
    ]
    told = [{name: value for name, value in one.items() if value != "plain"} for one in described]
    facts = [(AT_PLACE[scene.place][0], "place"), (AT_TIME[scene.time][0], "time")]
    if scene.place in SEASONAL:
        facts.append((IN_SEASON[scene.season][0], "season"))
    text = " ".join([listed([a(noun(one)) for one in told] or [COUNTS[0]]), *(words for words, _ in facts)])
    claims = _claims(scene, [name for _, name in facts]) | {"things": tuple(told)}
    return _styled(Caption(text, claims), scene)


def thing_caption(thing: Thing, rng: np.random.Generator) -> Caption:
    """Draw a caption of one object: "a striped red star"; its claims are true of a scene that shows it."""
    described = _some(thing, rng)
    described.pop("side", None)
    return Caption(a(noun(described, rng)), {"things": (described,)})


def holds(caption: Caption, scene: Scene) -> bool:
    """Say whether a caption is true of a scene: each description must fit an object of its own."""
    return _true(caption.claims, measured(scene), [aspects(thing) for thing in scene.things])


def holds_matrix(captions: Sequence[Caption], scenes: Sequence[Scene]) -> np.ndarray:
    """Return a bool array (len(captions), len(scenes)): `holds` of every pair."""
    known = [(measured(scene), [aspects(thing) for thing in scene.things]) for scene in scenes]
    truth = [[_true(caption.claims, *facts) for facts in known] for caption in captions]
    return np.array(truth, dtype=bool).reshape(len(captions), len(scenes))


def unclear_pairs(captions: Sequence[Caption], scenes: Sequence[Scene], hidden: Sequence[Collection[str]]) -> np.ndarray:
    """Return a bool array (len(captions), len(scenes)): captions whose truth hangs on what a picture hides.

    Args:
        hidden: for each scene the factors and aspects that nobody can see in its picture.
    """
    unsure = np.zeros((len(captions), len(scenes)), dtype=bool)
    for lost in {frozenset(one) for one in hidden if one}:
        columns = [k for k, one in enumerate(hidden) if frozenset(one) == lost]
        seen = [Caption(caption.text, _without(caption.claims, lost)) for caption in captions]
        hangs = [k for k, (full, part) in enumerate(zip(captions, seen, strict=True)) if full.claims != part.claims]
        unsure[np.ix_(hangs, columns)] = holds_matrix([seen[k] for k in hangs], [scenes[k] for k in columns])
    return unsure


def _without(claims: Claims, lost: Collection[str]) -> dict[str, tuple]:
    kept = {name: values for name, values in claims.items() if name not in lost}
    if "things" in claims:
        kept["things"] = tuple({name: value for name, value in one.items() if name not in lost} for one in claims["things"])
    return kept


def _true(claims: Claims, factors: Mapping[str, Any], seen: Sequence[dict[str, str]]) -> bool:
    if any(factors[name] not in values for name, values in claims.items() if name not in ("things", "left_of")):
        return False
    options = [[k for k, one in enumerate(seen) if told.items() <= one.items()] for told in claims.get("things", ())]
    x = [thing["x"] for thing in factors["things"]]
    for chosen in product(*options):
        apart = all(x[chosen[i]] + BESIDE <= x[chosen[j]] for i, j in claims.get("left_of", ()))
        if apart and len(set(chosen)) == len(chosen):
            return True
    return False


def _facts(scene: Scene, rng: np.random.Generator) -> list[str]:
    names = [name for name, share in WHOLE.items() if rng.random() < share]
    return [name for name in names if name != "season" or scene.place in SEASONAL]


def _claims(scene: Scene, names: list[str]) -> dict[str, tuple]:
    claims: dict[str, tuple] = {name: (getattr(scene, name),) for name in names}
    return {"place": SEASONAL, **claims} if "season" in names else claims


def _where(scene: Scene, rng: np.random.Generator, names: list[str]) -> list[str]:
    tables = {"place": AT_PLACE, "time": AT_TIME, "season": IN_SEASON}
    return [pick(rng, tables[name][getattr(scene, name)]) for name in names]


def _framed(text: str, claims: dict[str, tuple], scene: Scene, rng: np.random.Generator) -> Caption:
    frame = FRAMES[0] if rng.random() < 0.5 or scene.style != "plain" else pick(rng, FRAMES)
    return _styled(Caption(frame.format(text), claims), scene, rng)


def _styled(caption: Caption, scene: Scene, rng: np.random.Generator | None = None) -> Caption:
    """Say the style first, where there is one."""
    if scene.style == "plain":
        return caption
    words = IN_STYLE[scene.style]
    return Caption(
        f"{words[0] if rng is None else pick(rng, words)} of {caption.text}", {**caption.claims, "style": (scene.style,)}
    )


def _count(scene: Scene, facts: list[str]) -> Caption:
    """For example "three objects"."""
    number = len(scene.things)
    words = [COUNTS[number], *(AT_PLACE[scene.place][:1] if "place" in facts else ())]
    claims = {name: (getattr(scene, name),) for name in facts if name == "place"}
    return _styled(Caption(" ".join(words), {**claims, "count": (number,)}), scene)


def _setting(scene: Scene, rng: np.random.Generator, facts: list[str]) -> Caption:
    """For example "a beach at night in winter"."""
    names = ["place", *(name for name in facts if name != "place")]
    words = [pick(rng, SETTINGS[scene.place]), *_where(scene, rng, names[1:])]
    return _framed(" ".join(words), _claims(scene, names), scene, rng)


def _objects(scene: Scene, rng: np.random.Generator, facts: list[str]) -> Caption:
    """For example "a striped red star left of a cup on a beach"."""
    count = int(rng.integers(1, len(scene.things) + 1))
    chosen = [scene.things[int(k)] for k in rng.permutation(len(scene.things))[:count]]
    described = [_some(thing, rng) for thing in chosen]
    if len({noun(one) for one in described}) < len(described):  # never "a star and a star"
        described = [{"colour": thing.colour, "shape": thing.shape} for thing in chosen]
    where = _where(scene, rng, facts)
    claims = _claims(scene, facts) | {"things": tuple(described)}
    if count == 2 and chosen[0].x + BESIDE <= chosen[1].x and rng.random() < 0.5:
        for one in described:
            one.pop("side", None)
        words = [a(noun(described[0], rng)), pick(rng, ("left of", "to the left of")), a(noun(described[1], rng))]
        return _framed(" ".join([*words, *where]), {**claims, "left_of": ((0, 1),)}, scene, rng)
    words = [a(noun(one, rng)) + (f" {SIDES[one['side']]}" if "side" in one else "") for one in described]
    return _framed(" ".join([listed(words), *where]), claims, scene, rng)


def _some(thing: Thing, rng: np.random.Generator) -> dict[str, str]:
    """Draw the aspects to speak of: nearly always the shape, any of the others."""
    every = aspects(thing)
    named = {name for name, share in SAID.items() if rng.random() < share}
    if rng.random() < 0.95 or not named - {"side"}:
        named.add("shape")
    return {name: value for name, value in every.items() if name in named}
