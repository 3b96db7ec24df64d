"""The toy world's animals as a data module: heads of one kind, or of several that are never seen in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.rendered import Rendered, RenderedDataset, some_of
from editkit.data.toyworld.animals import CATEGORICAL, CONTINUOUS, KINDS, animal_at, caption, measured, render


class AnimalDataset(RenderedDataset):
    """The first `count` animals of a split, of some kinds in turn; no animal is shown as two of them.

    Items hold image, key, index, caption, factors, visible and labels (see `editkit.data.items`), and
        domain  the place of its kind among `kinds`, which is what a classifier of domains learns

    Args:
        split, count, size: as for `RenderedDataset`.
        kinds: cat, dog and fox, or some of them.

    Raises:
        UsageError: as for `RenderedDataset`, no kind or an unknown one.
    """

    def __init__(self, split: str, count: int, size: int = 64, kinds: Sequence[str] = KINDS):
        super().__init__(split, count, size)
        self.kinds = some_of(KINDS, kinds, "data.kinds")

    def item(self, index: int) -> dict[str, Any]:
        number, domain = divmod(index, len(self.kinds))
        kind = self.kinds[domain]
        animal = animal_at(self.split, number, kind)
        picture, labels = render(animal, self.size, labels=True)
        return {
            "image": image_tensor(picture),
            "key": f"animals/{self.split}/{kind}/{number:06d}",
            "index": index,
            "caption": caption(animal).text,
            "domain": domain,
            "factors": measured(animal),
            "visible": dict.fromkeys((*CATEGORICAL, *CONTINUOUS), True),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }


class Animals(Rendered):
    """Toy animals in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many animals of each split, the kinds in turn.
        kinds: which kinds.
    """

    def __init__(self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256, kinds: Sequence[str] = KINDS):
        super().__init__(size, train, validation, test)
        self.kinds = tuple(kinds)

    def dataset(self, split: str) -> AnimalDataset:
        return AnimalDataset(split, self.counts[split], self.size, self.kinds)
