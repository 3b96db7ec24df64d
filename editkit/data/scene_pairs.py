"""Toy scenes in pairs: before and after an instruction, and before and after an object is put in from a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from editkit.data.items import image_tensor
from editkit.data.scenes import SceneDataset, Scenes, mask_tensor
from editkit.data.toyworld.scenes.captions import full_caption
from editkit.data.toyworld.scenes.drawing import render
from editkit.data.toyworld.scenes.factors import Scene, measured, visible
from editkit.data.toyworld.scenes.words import a, identity, noun
from editkit.data.toyworld.scenes.world import edit_at, exemplar_at, key_of


class SceneEdits(SceneDataset):
    """The first `count` edits of a split.

    Items hold image (the source), key, index, caption, factors, visible and mask (see `editkit.data.items`), and
        target          (3, H, W) float32 in [-1, 1], the exact answer
        target_caption  a text that is true of the target
        instruction     what changes
        kind            the kind of the edit

    Args:
        split, count, size: as for `SceneDataset`.
        kinds: which kinds of edits, names of `toyworld.scenes.edits.KINDS`; all by default.

    Raises:
        UsageError: as for `SceneDataset`, and from indexing for an unknown kind.
    """

    def __init__(self, split: str, count: int, size: int = 64, kinds: Sequence[str] = ()):
        super().__init__(split, count, size)
        self.kinds = tuple(kinds)

    def item(self, index: int) -> dict[str, Any]:
        edit = edit_at(self.split, index, self.kinds)
        return {
            **_pair(edit.source, edit.target, key_of(self.split, index), index, self.size),
            "mask": mask_tensor(edit.mask(self.size)[None]),
            "instruction": edit.instruction,
            "kind": edit.kind,
        }


class SceneExemplars(SceneDataset):
    """The first `count` exemplar pairs of a split.

    Items hold image (the source), key, index, caption, factors, visible, mask and references (one crop of a second view of
    the object; see `editkit.data.items`), and
        target           (3, H, W) float32 in [-1, 1], the source with the object in the mask
        target_caption   a text that is true of the target
        reference_masks  tuple of one (1, H, W) float32, 1 = the object in the reference
        object_caption   what the object is
    """

    def item(self, index: int) -> dict[str, Any]:
        pair = exemplar_at(self.split, index)
        crop, shown = pair.reference(self.size)
        return {
            **_pair(pair.source, pair.target, key_of(self.split, index), index, self.size),
            "mask": mask_tensor(pair.mask(self.size)[None]),
            "references": (image_tensor(crop),),
            "reference_masks": (mask_tensor(shown[None]),),
            "object_caption": a(noun(identity(pair.thing))),
        }


class SceneEditsData(Scenes):
    """Edits of toy scenes in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many edits of each split.
        kinds: which kinds of edits; all by default.
    """

    def __init__(
        self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256, kinds: Sequence[str] = ()
    ) -> None:
        super().__init__(size, train, validation, test)
        self.kinds = tuple(kinds)

    def dataset(self, split: str) -> SceneEdits:
        return SceneEdits(split, self.counts[split], self.size, self.kinds)


class SceneExemplarsData(Scenes):
    """Exemplar pairs of toy scenes in three splits; arguments as for `Scenes`."""

    def dataset(self, split: str) -> SceneExemplars:
        return SceneExemplars(split, self.counts[split], self.size)


def _pair(source: Scene, target: Scene, key: str, index: int, size: int) -> dict[str, Any]:
    return {
        "image": image_tensor(render(source, size)),
        "target": image_tensor(render(target, size)),
        "key": key,
        "index": index,
        "caption": full_caption(source).text,
        "target_caption": full_caption(target).text,
        "factors": measured(source),
        "visible": visible(source),
    }
