"""A reader of scenes that makes no mistakes."""

from __future__ import annotations

import numpy as np

from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.factors import Scene
from editkit.metrics.scene_edits import ASPECTS, Expectation, SceneReading
from editkit.metrics.scene_oracle import THERE


def reading(scene: Scene, what: Expectation) -> SceneReading:
    """Read a scene as its own renderer knows it: a region holds the object that covers most of it, if objects cover enough."""
    instances = picture(scene).instances
    seen = []
    for number, region in enumerate(what.regions.numpy() > 0):
        counts = np.bincount(instances[region], minlength=5)
        there = counts[1:].sum() >= what.least.get(number, THERE) * counts.sum()
        thing = scene.things[int(counts[1:].argmax())] if there else None
        seen.append({name: getattr(thing, name) for name in ASPECTS} if thing else None)
    whole = {name: getattr(scene, name) for name in ("place", "time", "season", "style")}
    return SceneReading(whole | {"count": str(len(scene.things))}, seen)
