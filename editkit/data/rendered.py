"""What data sets of rendered pictures have in common: a split, a number of pictures and a size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch.utils.data import Dataset

from editkit.data.module import DataModule
from editkit.data.toyworld.samples import SPLITS
from editkit.errors import UsageError, suggestion


class RenderedDataset(Dataset[dict[str, Any]]):
    """The first `count` pictures of a split of the toy world; a subclass writes `item`.

    Args:
        split: train, validation, test or heldout.
        count: how many pictures.
        size: side of the pictures in pixels.

    Raises:
        UsageError: an unknown split, or a count or size that is no positive number.
    """

    what: ClassVar[str] = "toy world"  # as it is called in messages

    def __init__(self, split: str, count: int, size: int = 64):
        if split not in SPLITS:
            raise UsageError(f"the {self.what} has no split {split!r}.{suggestion(split, SPLITS)} There are: {', '.join(SPLITS)}")
        if count < 1 or size < 8:
            raise UsageError(f"the {self.what} needs at least 1 picture of 8 pixels a side, got {count} of {size}")
        self.split, self.count, self.size = split, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.count <= index < self.count:
            raise IndexError(f"picture {index} of {self.count}")
        return self.item(index % self.count)

    def item(self, index: int) -> dict[str, Any]:
        """Return the item of an index from 0 to count - 1."""
        raise NotImplementedError(f"{type(self).__name__}.item")


class Rendered(DataModule):
    """Rendered pictures in three splits; a subclass writes `dataset`.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many pictures of each split.
    """

    def __init__(self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256):
        super().__init__()
        self.size = size
        self.counts = {"train": train, "validation": validation, "test": test}


def some_of(known: Sequence[str], chosen: Sequence[str], where: str) -> tuple[str, ...]:
    """Return what a user chose of some names as a tuple.

    Args:
        where: what the user set, for messages.

    Raises:
        UsageError: none, one twice, or an unknown one.
    """
    if not chosen or len(set(chosen)) < len(chosen):
        raise UsageError(f"{where}={list(chosen)} needs one or more, each once, of: {', '.join(known)}")
    for name in chosen:
        if name not in known:
            raise UsageError(f"{where} has an unknown {name!r}.{suggestion(name, known)} There are: {', '.join(known)}")
    return tuple(chosen)
