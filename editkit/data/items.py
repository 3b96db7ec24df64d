"""Items, as every data set of editkit returns them, and how a batch is made of them.

An item is a dict with at least
    image    (3, H, W) float32 RGB in [-1, 1]
    key      names the picture: its relative path
    index    its position in the data set
    caption  a text, "" where there is none
    factors  dict of what is known about the picture, {} where nothing is
and, where a data set has them,
    mask        (1, H, W) float32, 1 = edit here
    references  tuple of (3, H, W) pictures
    labels      (H, W) int64 part labels
    visible     dict: which factors the picture shows
    target      (3, H, W) the picture after the edit
    instruction a text that says what to change
    reference_masks  tuple of (1, H, W), 1 = the object in the reference
What a data set has besides is said in its own docstring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from editkit.errors import UsageError


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch: tensors of one shape are stacked, numbers become a tensor, all else a list in the items' order.

    Factors stay a list of dicts. What no item has (None in all of them) is left out.

    Raises:
        ValueError: no items, or items with different keys.
    """
    if not items:
        raise ValueError("a batch needs at least one item")
    if any(item.keys() != items[0].keys() for item in items):
        raise ValueError(f"items of one batch need the same keys, got {sorted(set(map(tuple, items)))}")
    batch: dict[str, Any] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if all(value is None for value in values):
            continue
        if all(isinstance(value, (bool, int, float)) for value in values):
            batch[name] = torch.tensor(values)
            continue
        stackable = all(isinstance(value, Tensor) for value in values) and len({value.shape for value in values}) == 1
        batch[name] = torch.stack(values) if stackable else values
    return batch


def image_tensor(picture: np.ndarray | Image.Image) -> Tensor:
    """Return a uint8 HWC RGB picture as (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1.0).contiguous()


def image_array(image: Tensor) -> np.ndarray:
    """Return a (3, H, W) picture in [-1, 1] as uint8 HWC, clamped."""
    return image.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def check_holds(item: Mapping[str, Any], names: Sequence[str], learner: str, choose: str) -> None:
    """Raise a UsageError unless an item holds what a method learns from, each as it is or encoded.

    Args:
        names: keys of the item.
        learner: the method's name.
        choose: which data hold that, for the message.
    """

    def lacks(value: Any) -> bool:
        return value is None or (isinstance(value, str | tuple) and not value)

    lacking = [name for name in names if lacks(item.get(name)) and lacks(item.get(f"{name}_posterior"))]
    if lacking:
        wanted, absent = " and ".join(names), " and no ".join(lacking)
        raise UsageError(f"{learner} learns from {wanted}, and these data have no {absent}: {choose}")
