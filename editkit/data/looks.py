"""The toy world's faces by how they look, feminine or masculine: two domains that are never seen in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.rendered import Rendered, RenderedDataset, some_of
from editkit.data.toyworld.claims import measured
from editkit.data.toyworld.faces import CATEGORICAL, render, visible
from editkit.data.toyworld.world import face_of

LOOKS = CATEGORICAL["look"]


class LookDataset(RenderedDataset):
    """The first `count` faces of a split, of some looks in turn; no face is shown as both.

    Items hold image, key, index, factors, visible and labels (see `editkit.data.items`), and
        domain  the place of its look among `kinds`, which is what a classifier of domains learns

    Args:
        split, count, size: as for `RenderedDataset`.
        kinds: feminine and masculine, or one of them.

    Raises:
        UsageError: as for `RenderedDataset`, no look or an unknown one.
    """

    def __init__(self, split: str, count: int, size: int = 64, kinds: Sequence[str] = LOOKS):
        super().__init__(split, count, size)
        self.kinds = some_of(LOOKS, kinds, "data.kinds")

    def item(self, index: int) -> dict[str, Any]:
        number, domain = divmod(index, len(self.kinds))
        number = number * len(LOOKS) + LOOKS.index(self.kinds[domain])  # what is drawn for one look is not drawn for the other
        face = face_of(self.kinds[domain], self.split, number)
        picture, labels = render(face, self.size, labels=True)
        assert labels is not None
        return {
            "image": image_tensor(picture),
            "key": f"faces/{self.split}/{self.kinds[domain]}/{number:06d}",
            "index": index,
            "domain": domain,
            "factors": measured(face),
            "visible": visible(face),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }


class Looks(Rendered):
    """Toy faces by look, in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many faces of each split, the looks in turn.
        kinds: which looks.
    """

    def __init__(self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256, kinds: Sequence[str] = LOOKS):
        super().__init__(size, train, validation, test)
        self.kinds = tuple(kinds)

    def dataset(self, split: str) -> LookDataset:
        return LookDataset(split, self.counts[split], self.size, self.kinds)
