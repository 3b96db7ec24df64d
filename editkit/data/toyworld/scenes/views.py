"""Second views of the same objects, and exemplar pairs made of them: a reference that shows what is to appear elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from editkit.data.toyworld.scenes.drawing import Window, footprint, picture
from editkit.data.toyworld.scenes.factors import (
    HIGH,
    LARGEST,
    LOW,
    SMALLEST,
    TRIES,
    Scene,
    Thing,
    draw_kind,
    free,
    held_out,
    ordered,
)
from editkit.data.toyworld.scenes.words import pick

MARGIN = 1.35  # half side of a reference crop, in sizes of the object: loosely framed


@dataclass(frozen=True)
class Exemplar:
    """An object that is to appear in a scene, and a reference of it.

    Attributes:
        source: the scene with something else in that place.
        target: the exact answer.
        thing: the object in the target.
        view: another scene that shows the object, with another pose, size and light.
        shown: the object there.
    """

    source: Scene
    target: Scene
    thing: Thing
    view: Scene
    shown: Thing

    def mask(self, size: int = 64) -> np.ndarray:
        """Return where the source changes: the two objects with their shadows, bool (size, size)."""
        (other,) = set(self.source.things) - set(self.target.things)
        return footprint(self.thing, self.target, size) | footprint(other, self.source, size)

    def reference(self, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Return a crop about the object in the view: uint8 (size, size, 3) RGB, and its visible mask, bool (size, size)."""
        window = Window((self.shown.x, self.shown.y), 0.5 / (MARGIN * self.shown.size))
        drawn = picture(self.view, size, window)
        return drawn.image, drawn.instances == 1 + self.view.things.index(self.shown)


def second_view(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the same objects at the same place: moved, turned, nearer or farther, in another light."""
    return _relit(replace(scene, things=ordered([thing for thing, _ in _moved(scene, rng)])), rng)


def seen_again(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Scene, Thing]:
    """Return an object of a scene, a second view of the scene, and the same object there."""
    thing = pick(rng, scene.things)
    pairs = _moved(scene, rng)
    shown = next(after for after, before in pairs if before is thing)
    return thing, _relit(replace(scene, things=ordered([after for after, _ in pairs])), rng), shown


def draw_exemplar(scene: Scene, rng: np.random.Generator) -> Exemplar:
    """Draw an exemplar pair whose target is a scene; the reference comes from a second view of it."""
    thing, view, shown = seen_again(scene, rng)
    return Exemplar(_with_another(scene, thing, rng), scene, thing, view, shown)


def _with_another(scene: Scene, thing: Thing, rng: np.random.Generator) -> Scene:
    """Put another object where this one stands."""
    while True:
        kind = draw_kind(rng)
        other = replace(thing, shape=kind.shape, colour=kind.colour, texture=kind.texture)
        source = replace(scene, things=tuple(other if one is thing else one for one in scene.things))
        known = {(one.shape, one.colour) for one in scene.things}
        if (kind.shape, kind.colour) not in known and (held_out(scene) or not held_out(source)):
            return source


def _moved(scene: Scene, rng: np.random.Generator) -> list[tuple[Thing, Thing]]:
    """Return each object in a new pose, with the old one."""
    for _ in range(TRIES):
        pairs = [(_posed(thing, rng), thing) for thing in scene.things]
        if all(free(one, [other for other, _ in pairs[:k]]) for k, (one, _) in enumerate(pairs)):
            return pairs
    return [(replace(thing, angle=thing.angle + 20, x=1 - thing.x), thing) for thing in scene.things]  # seen from behind


def _posed(thing: Thing, rng: np.random.Generator) -> Thing:
    size = float(np.clip(thing.size * rng.uniform(0.8, 1.25), SMALLEST, LARGEST[0]))
    feet = float(np.clip(thing.feet + rng.uniform(-0.1, 0.1), HIGH, LOW))
    x = float(np.clip(thing.x + rng.uniform(-0.25, 0.25), size, 1 - size))
    turn = float(rng.choice((-1, 1)) * rng.uniform(10, 30))
    return replace(thing, x=x, y=feet - size, size=size, angle=thing.angle + turn)


def _relit(scene: Scene, rng: np.random.Generator) -> Scene:
    light = -np.sign(scene.light) * rng.uniform(0.4, 1.0)
    return replace(scene, light=float(light), exposure=float(rng.uniform(0.9, 1.1)), layout=float(rng.random()))
