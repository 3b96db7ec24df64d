"""A reader of scenes that makes no mistakes."""

from __future__ import annotations

import numpy as np

from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.factors import Scene
from editkit.metrics.scene_edits import ASPECTS, Expectation, SceneReading


def reading(scene: Scene, what: Expectation) -> SceneReading:
    """Read a scene as its own renderer knows it: a region holds what covers most of it."""
    instances = picture(scene).instances
    seen = []
    for region in what.regions.numpy() > 0:
        number = int(np.bincount(instances[region], minlength=5).argmax())
        thing = scene.things[number - 1] if number else None
        seen.append({name: getattr(thing, name) for name in ASPECTS} if thing else None)
    whole = {name: getattr(scene, name) for name in ("place", "time", "season", "style")}
    return SceneReading(whole | {"count": str(len(scene.things))}, seen)
