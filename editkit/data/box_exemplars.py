"""Pictures with boxes turned into exemplar pairs: an object's box is the mask's seed, and the object itself the reference.

This is how Paint by Example makes its training data from pictures with boxes alone (arXiv 2211.13227, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from editkit.data.box_masks import SHAPED, training_mask
from editkit.data.module import DataModule
from editkit.data.photo import Box
from editkit.data.reference_views import another_view, cut_out
from editkit.errors import UsageError, UserError


class BoxExemplarDataset(Dataset[dict[str, Any]]):
    """Exemplar pairs of a data set whose items have boxes, or a mask each whose box is taken.

    Items hold image, key and index of the inner items and, drawn anew each time from torch's global generator,
        mask        (1, H, W) float32, 1 = edit here, about one box of the picture
        references  tuple of one (3, side, side), the box's content, changed
    A picture without a box of a fit size gives the pair of the next one.

    Args:
        inner: items with `boxes` (N, 4) of left, top, right, bottom, where a row of zeros is none, or with `mask`.
        side: of the references in pixels.
        padding: most pixels that a reference shows around its box.
        jitter, shaped: of the masks, see `training_mask`.
        smallest, largest: shares of the picture that a box may have.
    """

    def __init__(
        self, inner: Dataset[dict[str, Any]], side: int, padding: int, jitter: int, shaped: float, smallest: float, largest: float
    ) -> None:
        self.inner, self.side, self.padding, self.jitter, self.shaped = inner, side, padding, jitter, shaped
        self.smallest, self.largest = smallest, largest

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    @property
    def blocks(self) -> Sequence[int]:
        """Numbers of consecutive items that are read together, as of the inner data set."""
        return getattr(self.inner, "blocks", ())

    def __getitem__(self, index: int) -> dict[str, Any]:
        for number in range(index, index + len(self)):
            item = self.inner[number % len(self)]
            boxes = fit_boxes(item, self.smallest, self.largest)
            if boxes:
                return self._pair(item, boxes[int(torch.randint(len(boxes), ()))])
        raise UserError(
            f"none of the {len(self)} pictures has a box between {self.smallest:.0%} and {self.largest:.0%} of it: use data with "
            "boxes or masks of objects, or change data.smallest and data.largest"
        )

    def _pair(self, item: dict[str, Any], box: Box) -> dict[str, Any]:
        image: Tensor = item["image"]
        mask, _ = training_mask(box, (image.shape[1], image.shape[2]), jitter=self.jitter, shaped=self.shaped)
        view = another_view(cut_out(image, box, self.padding), self.side)
        return {"image": image, "key": item["key"], "index": item["index"], "mask": mask, "references": (view,)}


class BoxExemplars(DataModule):
    """Exemplar pairs in the splits of another data module.

    Args:
        inner: the data module that has the boxes, or masks.
        reference_size: side of the references in pixels: that of the image encoder's pictures.
        padding, jitter, shaped, smallest, largest: see `BoxExemplarDataset`; padding and jitter are pixels of the items.

    Raises:
        UsageError: shares or sizes out of range.
    """

    def __init__(
        self,
        inner: DataModule,
        reference_size: int = 224,
        padding: int = 10,
        jitter: int = 5,
        shaped: float = SHAPED,
        smallest: float = 0.02,
        largest: float = 0.8,
    ) -> None:
        super().__init__()
        if not 0 <= smallest < largest <= 1 or not 0 <= shaped <= 1:
            raise UsageError("data.smallest, data.largest and data.shaped are shares, 0 to 1, and the first below the second")
        if reference_size < 8 or padding < 0 or jitter < 0:
            raise UsageError("data.reference_size must be 8 pixels or more, data.padding and data.jitter not negative")
        self.inner = inner
        self.settings = (reference_size, padding, jitter, shaped, smallest, largest)

    def dataset(self, split: str) -> BoxExemplarDataset:
        return BoxExemplarDataset(self.inner.dataset(split), *self.settings)


def fit_boxes(item: dict[str, Any], smallest: float, largest: float) -> list[Box]:
    """Return the boxes of an item that have a share of its picture between two bounds and at least two pixels a side.

    Raises:
        UserError: an item with neither boxes nor a mask.
    """
    _, height, width = item["image"].shape
    if "boxes" in item:
        boxes = [(int(x0), int(y0), int(x1), int(y1)) for x0, y0, x1, y1 in item["boxes"].tolist()]
    elif item.get("mask") is not None:
        boxes = [box_of(item["mask"][0])]
    else:
        raise UserError(f"{item['key']} has neither boxes nor a mask: painting by example learns from pictures with either")
    area = height * width
    return [
        (x0, y0, x1, y1)
        for x0, y0, x1, y1 in boxes
        if x1 - x0 > 1 and y1 - y0 > 1 and smallest * area <= (x1 - x0) * (y1 - y0) <= largest * area
    ]


def box_of(mask: Tensor) -> Box:
    """Return the smallest box about what is at least 0.5 in a mask (H, W); four zeros if nothing is."""
    rows, columns = ((mask >= 0.5).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else (0, 0, 0, 0)
