"""The toy world's scenes as a data module: drawn while training runs, a few ms a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from editkit.data.items import image_tensor
from editkit.data.rendered import Rendered, RenderedDataset
from editkit.data.toyworld.scenes.drawing import box, picture
from editkit.data.toyworld.scenes.factors import MOST, measured, visible
from editkit.data.toyworld.scenes.world import caption_at, key_of, scene_at, thing_captions_at


class SceneDataset(RenderedDataset):
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

    Arguments as for `RenderedDataset`.
    """

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


class Scenes(Rendered):
    """Toy scenes in three splits; arguments as for `Rendered`."""

    def dataset(self, split: str) -> SceneDataset:
        return SceneDataset(split, self.counts[split], self.size)


def mask_tensor(mask: np.ndarray) -> Tensor:
    """Return masks as float32 of the same shape."""
    return torch.from_numpy(mask.astype(np.float32))


def _filled(masks: np.ndarray) -> np.ndarray:
    """Add empty masks up to the largest number of objects."""
    return np.pad(masks, ((0, MOST - len(masks)), (0, 0), (0, 0)))
