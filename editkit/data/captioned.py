"""The toy world's faces and scenes together, as captioned pictures: what text-to-image models learn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.rendered import Rendered, RenderedDataset
from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.claims import measured as measured_face
from editkit.data.toyworld.faces import render as render_face
from editkit.data.toyworld.faces import visible as visible_face
from editkit.data.toyworld.samples import seed
from editkit.data.toyworld.scenes.captions import caption as scene_caption
from editkit.data.toyworld.scenes.captions import thing_caption
from editkit.data.toyworld.scenes.drawing import WHOLE, Window, picture
from editkit.data.toyworld.scenes.factors import STYLES, Scene, measured, visible
from editkit.data.toyworld.scenes.views import MARGIN
from editkit.data.toyworld.scenes.words import pick
from editkit.data.toyworld.scenes.world import scene_at
from editkit.data.toyworld.world import caption_at, face_at

EVERY_FACE = 4  # one picture in four is a face
EVERY_STYLE = 8  # one scene in eight is drawn in another style
STYLED, NEAR = 20, 21  # keep these random numbers apart from those of the domains
FARTHEST = 3  # distance at which an object is as large as scenes show it; at 1 it fills the picture
NEARER = ("a close-up of {}", "{} from near", "{} up close")


class CaptionedDataset(RenderedDataset):
    """The first `count` pictures of a split: three scenes, one of them sometimes in another style, then a face, and so on.

    A share of the scenes may be seen from near, one object alone: what shapes are called is learned there first.

    Items hold image, key, index, caption, factors and visible (see `editkit.data.items`), and
        foreground  (1, H, W) float32, 1 = object of a scene; zeros for faces

    Args:
        split, count, size: as for `RenderedDataset`.
        near: share of the scenes that are seen from near.
    """

    def __init__(self, split: str, count: int, size: int = 64, near: float = 0.0):
        super().__init__(split, count, size)
        self.near = near

    def item(self, index: int) -> dict[str, Any]:
        is_face, number = numbered(index)
        return self._face(number, index) if is_face else self._scene(number, index)

    def caption(self, index: int) -> str:
        """Return an item's caption without drawing its picture."""
        is_face, number = numbered(index)
        return (caption_at(self.split, number) if is_face else self._shown(number)[2]).text

    def _shown(self, number: int) -> tuple[Scene, Window, Caption]:
        rng = np.random.default_rng(seed(self.split, number, NEAR))
        if rng.random() < self.near:
            return seen_from_near(scene_at(self.split, number), rng)
        scene, words = captioned_scene(self.split, number)
        return scene, WHOLE, words

    def _face(self, number: int, index: int) -> dict[str, Any]:
        face = face_at(self.split, number)
        nothing = torch.zeros(1, self.size, self.size)
        facts = {"factors": measured_face(face), "visible": visible_face(face), "foreground": nothing}
        return self._item("faces", number, index, render_face(face, self.size)[0], caption_at(self.split, number), facts)

    def _scene(self, number: int, index: int) -> dict[str, Any]:
        scene, window, words = self._shown(number)
        drawn = picture(scene, self.size, window)
        objects = torch.from_numpy(drawn.instances > 0).float()[None]
        facts = {"factors": measured(scene), "visible": visible(scene), "foreground": objects}
        return self._item("scenes", number, index, drawn.image, words, facts)

    def _item(
        self, domain: str, number: int, index: int, picture: np.ndarray, words: Caption, facts: dict[str, Any]
    ) -> dict[str, Any]:
        key = f"{domain}/{self.split}/{number:06d}"
        return {"image": image_tensor(picture), "key": key, "index": index, "caption": words.text, **facts}


class Captioned(Rendered):
    """Captioned faces and scenes in three splits.

    Args:
        size, train, validation, test: as for `Rendered`.
        near: see `CaptionedDataset`.
    """

    def __init__(self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256, near: float = 0.0):
        super().__init__(size, train, validation, test)
        self.near = near

    def dataset(self, split: str) -> CaptionedDataset:
        return CaptionedDataset(split, self.counts[split], self.size, self.near)


def numbered(index: int) -> tuple[bool, int]:
    """Say whether a picture is a face, and its number within its domain."""
    row, place = divmod(index, EVERY_FACE)
    return (True, row) if place == EVERY_FACE - 1 else (False, row * (EVERY_FACE - 1) + place)


def seen_from_near(scene: Scene, rng: np.random.Generator) -> tuple[Scene, Window, Caption]:
    """Return one object of a scene alone, the part of the picture about it, from a third to nearly all of it, and a caption."""
    thing = pick(rng, scene.things)
    distance = rng.uniform(1, FARTHEST)
    words = thing_caption(thing, rng)
    if distance < FARTHEST - 1 and rng.random() < 0.5:
        words = replace(words, text=pick(rng, NEARER).format(words.text))
    window = Window((thing.x, thing.y), 0.5 / (distance * MARGIN * thing.size))
    return replace(scene, things=(thing,)), window, words


def captioned_scene(split: str, number: int) -> tuple[Scene, Caption]:
    """Return a scene of a split, one in eight in another style, with its caption."""
    rng = np.random.default_rng(seed(split, number, STYLED))
    scene = scene_at(split, number)
    if number % EVERY_STYLE == EVERY_STYLE - 1:
        scene = replace(scene, style=str(rng.choice([style for style in STYLES if style != "plain"])))
    return scene, scene_caption(scene, rng)
