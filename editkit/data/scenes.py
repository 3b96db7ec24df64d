"""The toy world's scenes as a data module: drawn while training runs, a few ms a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from editkit.data.items import image_tensor
from editkit.data.module import DataModule
from editkit.data.toyworld.samples import SPLITS
from editkit.data.toyworld.scenes.drawing import box, picture
from editkit.data.toyworld.scenes.factors import MOST, measured, visible
from editkit.data.toyworld.scenes.world import caption_at, key_of, scene_at, thing_captions_at
from editkit.errors import UsageError, suggestion


class SceneDataset(Dataset[dict[str, Any]]):
    """The first `count` scenes of a split.

    Items hold image, key, index, caption, factors, visible and labels (see `editkit.data.items`), and for the objects from
    far to near, four at most; where there are fewer, masks and boxes end with zeros:
        instances        (H, W) int64, 0 behind the objects, else 1 + the object's number
        object_masks     (4, H, W) float32, 1 = visible part of the object
        whole_masks      (4, H, W) float32, 1 = the object as if nothing hid it
        boxes            (4, 4) int64, tight about the visible part: left, top, right, bottom, the last two exclusive
        object_captions  a text for each object
        sketch           (1, H, W) float32, 1 = line
    The scene itself is `scene_at(split, index)`.

    Args:
        split: train, validation, test or heldout.
        count: how many scenes.
        size: side of the pictures in pixels.

    Raises:
        UsageError: an unknown split, or a count or size that is no positive number.
    """

    def __init__(self, split: str, count: int, size: int = 64):
        if split not in SPLITS:
            raise UsageError(f"the toy scenes have no split {split!r}.{suggestion(split, SPLITS)} There are: {', '.join(SPLITS)}")
        if count < 1 or size < 8:
            raise UsageError(f"the toy scenes need at least 1 picture of 8 pixels a side, got {count} of {size}")
        self.split, self.count, self.size = split, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.count <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return self.item(index % self.count)

    def item(self, index: int) -> dict[str, Any]:
        """Return the item of an index from 0 to count - 1."""
        scene = scene_at(self.split, index)
        drawn = picture(scene, self.size)
        seen, whole = _filled(drawn.seen), _filled(drawn.whole)
        return {
            "image": image_tensor(drawn.image),
            "key": key_of(self.split, index),
            "index": index,
            "caption": caption_at(self.split, index).text,
            "factors": measured(scene),
            "visible": visible(scene),
            "labels": torch.from_numpy(drawn.labels.astype(np.int64)),
            "instances": torch.from_numpy(drawn.instances.astype(np.int64)),
            "object_masks": mask_tensor(seen),
            "whole_masks": mask_tensor(whole),
            "boxes": torch.tensor([box(mask) for mask in seen]),
            "object_captions": tuple(text.text for text in thing_captions_at(self.split, index)),
            "sketch": mask_tensor(1 - drawn.sketch[None].astype(np.float32) / 255),
        }


class Scenes(DataModule):
    """Toy scenes in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many scenes of each split.
    """

    def __init__(self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256):
        super().__init__()
        self.size = size
        self.counts = {"train": train, "validation": validation, "test": test}

    def dataset(self, split: str) -> SceneDataset:
        return SceneDataset(split, self.counts[split], self.size)


def mask_tensor(mask: np.ndarray) -> Tensor:
    """Return masks as float32 of the same shape."""
    return torch.from_numpy(mask.astype(np.float32))


def _filled(masks: np.ndarray) -> np.ndarray:
    """Add empty masks up to the largest number of objects."""
    return np.pad(masks, ((0, MOST - len(masks)), (0, 0), (0, 0)))
