"""Toy scenes as a reader may meet them, and single objects seen twice; drawn anew each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.scenes import SceneDataset, Scenes
from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.factors import STYLES, Scene, measured, visible
from editkit.data.toyworld.scenes.views import second_view
from editkit.data.toyworld.scenes.words import pick
from editkit.data.toyworld.scenes.world import key_of, scene_at

STYLED = 0.35  # share of the pictures that are in one of the styles


class VariedScenes(SceneDataset):
    """Scenes of a split, half of them moved, turned and relit (second views), some in a style.

    Items hold image, key, index, caption (""), factors and visible (see `editkit.data.items`), and
        scene      what the picture shows
        instances  (H, W) int64, 0 behind the objects, else 1 + the object's place in `scene.things`
    """

    def item(self, index: int) -> dict[str, Any]:
        scene = varied(scene_at(self.split, index), drawn_generator())
        drawn = picture(scene, self.size)
        return {
            "image": image_tensor(drawn.image),
            "key": key_of(self.split, index),
            "index": index,
            "caption": "",
            "factors": measured(scene),
            "visible": visible(scene),
            "scene": scene,
            "instances": torch.from_numpy(drawn.instances.astype(np.int64)),
        }


class VariedScenesData(Scenes):
    """Varied toy scenes in three splits; arguments as for `Scenes`."""

    def dataset(self, split: str) -> VariedScenes:
        return VariedScenes(split, self.counts[split], self.size)


def varied(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene or a second view of it, plain or in a style."""
    seen = second_view(scene, rng) if rng.random() < 0.5 else scene
    return replace(seen, style=pick(rng, STYLES[1:])) if rng.random() < STYLED else seen


def drawn_generator() -> np.random.Generator:
    """Return a generator seeded by torch's own, whose state training saves and restores."""
    return np.random.default_rng(int(torch.randint(2**62, ())))
