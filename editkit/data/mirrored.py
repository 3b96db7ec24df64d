"""Pairs and their mirror images: the random flip of a training recipe as data, so that it can be encoded once."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from editkit.data.module import DataModule

_PICTURES = ("image", "target", "mask", "labels", "references", "reference_masks")
_SIDES = re.compile(r"\b(left|right|leftmost|rightmost|clockwise|counterclockwise|anticlockwise)\b", re.IGNORECASE)


class MirroredDataset(Dataset[dict[str, Any]]):
    """Every item of a data set as it is, and once more with all its pictures mirrored, or unchanged if its text names a side.

    Item n + k is the twin of item k, under the key KEY/mirrored. All pictures of an item are mirrored together.

    Args:
        inner: n items with images and, if they have one, an instruction.
        safe: leave pairs alone whose instruction says left or right; False mirrors them too, as the released code of
            InstructPix2Pix does.
    """

    def __init__(self, inner: Dataset[dict[str, Any]], safe: bool = True):
        self.inner, self.safe = inner, safe

    def __len__(self) -> int:
        return 2 * self._half

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        index %= len(self)
        item = dict(self.inner[index % self._half])
        if index < self._half:
            return item
        item |= {"key": f"{item['key']}/mirrored", "index": index}
        if self.safe and _SIDES.search(item.get("instruction") or ""):
            return item
        return item | {name: _mirrored(item[name]) for name in _PICTURES if name in item}

    @property
    def _half(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]


class Mirrored(DataModule):
    """A data module whose training set has a mirrored twin of every item; validation and test stay as they are.

    Args:
        inner: the data module.
        safe: as for `MirroredDataset`.
    """

    def __init__(self, inner: DataModule, safe: bool = True):
        super().__init__()
        self.inner, self.safe = inner, safe

    def dataset(self, split: str) -> Dataset[dict[str, Any]]:
        found = self.inner.dataset(split)
        return MirroredDataset(found, self.safe) if split == "train" else found


def _mirrored(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_mirrored, value))
    return value.flip(-1) if isinstance(value, Tensor) else value
