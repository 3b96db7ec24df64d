"""Pictures of the whole toy world in pairs that differ by one change, each with captions: faces, scenes, and single objects.

What a contrastive model of both domains learns from, in the manner of `editkit.data.pairs`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.pairs import FacePairs
from editkit.data.scene_views import drawn_generator, varied
from editkit.data.scenes import SceneDataset, Scenes
from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.captions import caption as face_caption
from editkit.data.toyworld.scenes.captions import caption, full_caption, thing_caption
from editkit.data.toyworld.scenes.drawing import WHOLE, Window, picture
from editkit.data.toyworld.scenes.edits import SceneEdit, draw_edit
from editkit.data.toyworld.scenes.factors import HIDDEN, Scene, draw_scene
from editkit.data.toyworld.scenes.views import MARGIN
from editkit.data.toyworld.scenes.words import pick
from editkit.data.toyworld.scenes.world import key_of, scene_at
from editkit.data.toyworld.world import EDITS, SOURCE_PROMPT

OF_ONE = ("recolour", "reshape", "retexture")
OUT_OF_SIGHT = frozenset({"place", "season", "size", "side", "count"})  # in a crop about one object


class WorldPairs(SceneDataset):
    """Pairs of one domain or the other, drawn anew each time.

    Items hold image, key, index, caption and factors ({}) (see `editkit.data.items`), and
        other        (3, H, W), the picture after the change
        shown        two `Face`s or two `Scene`s, what the pictures show
        hidden       frozensets, what nobody can see in them
        instances    (2, H, W) int64, 0 or 1 + the number of an object of the scene; 0 in faces
        captions     three `Caption`s: of each picture, and of one that is not in the pair but differs by a change as well
        told         two plain `Caption`s that differ in the change alone
        instruction  the change as an instruction, "" for faces
        change       names the change; two of the same name go the same way

    Args:
        split, count, size: as for `SceneDataset`.
        faces: share of the pairs that are faces.
        crops: share that are crops about one object.
    """

    def __init__(self, split: str, count: int, size: int = 64, faces: float = 0.3, crops: float = 0.2):
        super().__init__(split, count, size)
        self.shares = (faces, faces + crops)
        self.faces = FacePairs(split, size, count, expressions=0.3)

    def item(self, index: int) -> dict[str, Any]:
        rng = drawn_generator()
        kind = rng.random()
        if kind < self.shares[0]:
            return self.face_pair(index, rng)
        return self.scene_pair(index, rng, crop=bool(kind < self.shares[1]))

    def face_pair(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a face before and after a named edit."""
        item = self.faces[index]
        edit = EDITS[item["edit"]]
        return {
            "image": item["image"],
            "key": item["key"],
            "index": index,
            "caption": item["captions"][0].text,
            "factors": {},
            "other": item["other"],
            "shown": (item["face"], item["other_face"]),
            "hidden": (frozenset(), frozenset()),
            "instances": torch.zeros(2, self.size, self.size, dtype=torch.int64),
            "captions": (*item["captions"], face_caption(item["face"], rng)),
            "told": (Caption(SOURCE_PROMPT), Caption(edit.prompt, edit.target)),
            "instruction": "",
            "change": edit.name,
        }

    def scene_pair(self, index: int, rng: np.random.Generator, *, crop: bool) -> dict[str, Any]:
        """Return a scene, or one object of it alone, before and after an edit."""
        edit = _edit(varied(scene_at(self.split, index), rng), rng, crop=crop)
        scenes = (edit.source, edit.target)
        windows = [_about(scene) if crop else WHOLE for scene in scenes]
        drawn = [picture(scene, self.size, window) for scene, window in zip(scenes, windows, strict=True)]
        lost = OUT_OF_SIGHT if crop else frozenset()
        captions = (_caption(edit.source, rng, crop), _caption(edit.target, rng, crop), _hard(edit, rng))
        return {
            "image": image_tensor(drawn[0].image),
            "key": key_of(self.split, index),
            "index": index,
            "caption": captions[0].text,
            "factors": {},
            "other": image_tensor(drawn[1].image),
            "shown": scenes,
            "hidden": tuple(HIDDEN.get(scene.style, frozenset()) | lost for scene in scenes),
            "instances": torch.from_numpy(np.stack([one.instances for one in drawn]).astype(np.int64)),
            "captions": captions,
            "told": (full_caption(edit.source), full_caption(edit.target)),
            "instruction": edit.instruction,
            "change": change_of(edit),
        }


class WorldPairsData(Scenes):
    """Pairs of both domains in three splits.

    Args:
        size, train, validation, test: as for `Scenes`.
        faces, crops: shares, see `WorldPairs`.
    """

    def __init__(
        self,
        size: int = 64,
        train: int = 40_000,
        validation: int = 256,
        test: int = 256,
        faces: float = 0.3,
        crops: float = 0.2,
    ) -> None:
        super().__init__(size, train, validation, test)
        self.shares = {"faces": faces, "crops": crops}

    def dataset(self, split: str) -> WorldPairs:
        return WorldPairs(split, self.counts[split], self.size, **self.shares)


def change_of(edit: SceneEdit) -> str:
    """Name what an edit does, whichever object it does it to: "recolour blue", "add red star", "place beach"."""
    if edit.kind in ("add", "remove", "move"):
        thing = edit.after or edit.before
        assert thing is not None
        return f"{edit.kind} {thing.colour} {thing.shape}"
    if edit.after is not None:
        return f"{edit.kind} {getattr(edit.after, {'recolour': 'colour', 'reshape': 'shape', 'retexture': 'texture'}[edit.kind])}"
    return f"{edit.kind} {getattr(edit.target, 'style' if edit.kind == 'restyle' else edit.kind)}"


def _edit(scene: Scene, rng: np.random.Generator, *, crop: bool) -> SceneEdit:
    edit = draw_edit(replace(scene, things=(pick(rng, scene.things),)), rng, OF_ONE) if crop else draw_edit(scene, rng)
    while edit is None:  # a rare scene has no such edit: its name for the object would not be clear
        other = draw_scene(rng)
        edit = draw_edit(replace(other, things=other.things[:1]), rng, OF_ONE)
    return edit


def _caption(scene: Scene, rng: np.random.Generator, crop: bool) -> Caption:
    return thing_caption(scene.things[0], rng) if crop else caption(scene, rng)


def _hard(edit: SceneEdit, rng: np.random.Generator) -> Caption:
    """Return a caption of a scene that differs from the pair's by one change more: two objects swap their colours, or an edit."""
    things = edit.target.things
    if len(things) > 1 and rng.random() < 0.5:
        swapped = (replace(things[0], colour=things[1].colour), replace(things[1], colour=things[0].colour), *things[2:])
        return full_caption(replace(edit.target, things=swapped))
    another = draw_edit(edit.target, rng)
    return caption(another.target if another is not None else edit.source, rng)


def _about(scene: Scene) -> Window:
    """Return a window about the only object of a scene, as references are framed."""
    (thing,) = scene.things
    return Window((thing.x, thing.y), 0.5 / (MARGIN * thing.size))
