"""Toy scenes as a reader may meet them, and single objects seen twice; drawn anew each time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editkit.data.items import image_tensor
from editkit.data.scenes import SceneDataset, Scenes, mask_tensor
from editkit.data.toyworld.scenes.drawing import Window, picture
from editkit.data.toyworld.scenes.factors import STYLES, Scene, Thing, measured, visible
from editkit.data.toyworld.scenes.views import second_view, seen_again
from editkit.data.toyworld.scenes.words import a, identity, noun, pick
from editkit.data.toyworld.scenes.world import key_of, scene_at

STYLED = 0.35  # share of the pictures that are in one of the styles
ROOM = (1.15, 1.7)  # half side of a cut-out, in sizes of its object
OFF = 0.2  # farthest that its middle is from the object's, in sizes


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


class ThingViews(SceneDataset):
    """An object of each scene and the same one in a second view, each cut out with some room about it.

    Items hold image, key, index, caption (what the object is) and factors ({}) (see `editkit.data.items`), and
        other         (3, H, W), the second view
        object_masks  (2, H, W) float32, 1 = the object, in both views
        frames        (2, 4) float32: the object's turn in radians, half the side of the cut-out and its middle (x, y) from
                      the object's, in sizes of the object
    """

    def item(self, index: int) -> dict[str, Any]:
        rng, scene = drawn_generator(), scene_at(self.split, index)
        thing, view, shown = seen_again(scene, rng)
        cuts = [self._cut(*pair, rng) for pair in ((thing, scene), (shown, view))]
        (image, mask, frame), (other, other_mask, other_frame) = cuts
        return {
            "image": image,
            "key": key_of(self.split, index),
            "index": index,
            "caption": a(noun(identity(thing))),
            "factors": {},
            "other": other,
            "object_masks": torch.stack([mask, other_mask]),
            "frames": torch.stack([frame, other_frame]),
        }

    def _cut(self, thing: Thing, scene: Scene, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        half, dx, dy = rng.uniform(*ROOM), *rng.uniform(-OFF, OFF, 2)
        window = Window((thing.x + dx * thing.size, thing.y + dy * thing.size), 0.5 / (half * thing.size))
        drawn = picture(scene, self.size, window)
        mask = mask_tensor(drawn.instances == 1 + scene.things.index(thing))
        return image_tensor(drawn.image), mask, torch.tensor([math.radians(thing.angle), half, dx, dy], dtype=torch.float32)


class ThingViewsData(Scenes):
    """Objects in two views in three splits; arguments as for `Scenes`."""

    def dataset(self, split: str) -> ThingViews:
        return ThingViews(split, self.counts[split], self.size)


def carried_over(points: Tensor, frames: Tensor) -> Tensor:
    """Return where points of an object in one view lie in the other.

    Args:
        points: (B, P, 2), (x, y) from -1 to 1 over the first cut-out.
        frames: (B, 2, 4), see `ThingViews`.

    Returns:
        (B, P, 2) over the second cut-out; beyond -1 and 1 where it does not show them.
    """
    here, there = frames.unbind(1)
    turn = there[:, 0] - here[:, 0]
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    from_middle = points * here[:, None, 1:2] + here[:, None, 2:]
    return (from_middle @ rotation.mT - there[:, None, 2:]) / there[:, None, 1:2]


def varied(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene or a second view of it, plain or in a style."""
    seen = second_view(scene, rng) if rng.random() < 0.5 else scene
    return replace(seen, style=pick(rng, STYLES[1:])) if rng.random() < STYLED else seen


def drawn_generator() -> np.random.Generator:
    """Return a generator seeded by torch's own, whose state training saves and restores."""
    return np.random.default_rng(int(torch.randint(2**62, ())))
