"""From what a layout holds of one sample, at its own size, to the items that the toy world has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from editkit.data.fit import Fit, fit, fit_holding
from editkit.data.listing import check_shares
from editkit.data.module import DataModule
from editkit.data.photo import Photo, by
from editkit.data.published.known import check_looks
from editkit.data.readings import Readings
from editkit.errors import UsageError, UserError

HOW = ("crop", "resize")
ASPECTS = 0.02  # by how much the shapes of a picture and its edited twin may differ


@dataclass(frozen=True)
class Thing:
    """One annotated object.

    Attributes:
        label: what it is.
        box: left, top, right, bottom in pixels of the picture, the last two exclusive.
        mask: bool (H, W); None where only the box is known.
    """

    label: str
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None

    @property
    def area(self) -> float:
        """Pixels in the box."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class Pair:
    """A picture with what may belong to it: the same picture after an instruction, where it changes, references."""

    image: Photo
    target: Photo | None = None
    instruction: str = ""
    caption: str = ""
    target_caption: str = ""
    mask: np.ndarray | None = None  # bool (H, W), True = edit here
    references: tuple[Photo, ...] = ()


@dataclass(frozen=True)
class Annotated:
    """A picture with objects in it."""

    image: Photo
    things: tuple[Thing, ...]
    caption: str = ""


class Source:
    """Samples of one split, read one by one; a subclass has `__len__`, `key` and `record`.

    Attributes:
        notes: what was left out on purpose when the files were listed, for people.
        bad: what was left out because it is broken.
        blocks: numbers of consecutive samples that are read from a file together; () where each is read alone.
    """

    notes: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    blocks: Sequence[int] = ()

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__}.__len__")

    def key(self, index: int) -> str:
        """Name a sample."""
        raise NotImplementedError(f"{type(self).__name__}.key")

    def record(self, index: int) -> Any:
        """Read a sample, a `Pair` or an `Annotated`, or raise UserError saying what is wrong with it."""
        raise NotImplementedError(f"{type(self).__name__}.record")


class Sourced(Readings):
    """Base of the data sets over a source.

    Args:
        source: what to read.
        size: side of the items in pixels.
        how: `crop` or `resize`.
    """

    def __init__(self, source: Source, size: int, how: str = "crop"):
        super().__init__()
        self.source, self.size, self.how = source, size, how

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        return self.source.key(index)

    @property
    def blocks(self) -> Sequence[int]:
        """See `Source`."""
        return self.source.blocks


class Pairs(Sourced):
    """Items of a source of `Pair`.

    Items hold image, key, index, caption, factors, visible, target, target_caption, instruction, mask and references (see
    `editkit.data.items`); target and mask are None where a picture has none.

    Args:
        source: what to read.
        size: side of the items in pixels.
        how: `crop` takes the largest centred square, `resize` squeezes the whole picture.
    """

    def read(self, index: int) -> dict[str, Any]:
        pair = self.source.record(index)
        if pair.target is not None:
            _check_shapes(pair.image, pair.target)
        part = self._part(pair.image)
        return {
            "image": part.image(pair.image),
            "key": self.key(index),
            "index": index,
            "caption": pair.caption,
            "factors": {},
            "visible": {},
            "target": None if pair.target is None else self._part(pair.target).image(pair.target),
            "target_caption": pair.target_caption,
            "instruction": pair.instruction,
            "mask": None if pair.mask is None else part.mask(_of_size(pair.mask, pair.image.size)),
            "references": tuple(self._part(photo).image(photo) for photo in pair.references),
        }

    def _part(self, photo: Photo) -> Fit:
        return fit(photo.size, (self.size, self.size), self.how)


class Objects(Sourced):
    """Items of a source of `Annotated`.

    Items hold image, key, index, caption, factors and visible (see `editkit.data.items`), and as toy scenes do, padded with
    zeros up to `slots` objects:
        object_masks     (slots, H, W) float32, 1 = the object; the whole box where only that is known
        boxes            (slots, 4) int64: left, top, right, bottom, the last two exclusive
        object_captions  a label for each object
    An object of which the item shows nothing is not in it; a picture without any is broken.

    Args:
        source, size: as for `Pairs`.
        how: `crop` takes the largest square, centred as far as that shows the largest object; `resize` squeezes.
        slots: objects of an item; of a picture with more, the largest.
    """

    def __init__(self, source: Source, size: int, how: str = "crop", slots: int = 8):
        super().__init__(source, size, how)
        self.slots = slots

    def read(self, index: int) -> dict[str, Any]:
        record = self.source.record(index)
        photo, things = record.image, _largest(record.things, self.slots)
        square = (self.size, self.size)
        part = fit(photo.size, square, self.how)
        if self.how == "crop":
            part = fit_holding(photo.size, square, _largest(things, 1)[0].box)
        masks, boxes = torch.zeros(self.slots, *square), torch.zeros(self.slots, 4, dtype=torch.int64)
        labels: list[str] = []
        for thing in things:
            box = _inside(part, thing)
            if box is not None:
                masks[len(labels)] = _mask(part, thing, box)
                boxes[len(labels)] = torch.tensor(box)
                labels.append(thing.label)
        if not labels:
            raise UserError(f"{photo.name}: none of its objects shows in an item of {self.size} pixels")
        return {
            "image": part.image(photo),
            "key": self.key(index),
            "index": index,
            "caption": record.caption,
            "factors": {},
            "visible": {},
            "object_masks": masks,
            "boxes": boxes,
            "object_captions": tuple(labels),
        }


class Published(DataModule):
    """Base of the modules of published data sets; a subclass has `layout`, and `open` returns the data set of a split.

    Args:
        root: the folder.
        size: side of the items in pixels.
        fit: `crop` or `resize`.

    Raises:
        UsageError: a size below 8 pixels, or an unknown fit.
        UserError: from the data sets: no such folder, another layout, or missing files.
    """

    layout = ""

    def __init__(self, root: str | Path, size: int, fit: str):
        super().__init__()
        if size < 8:
            raise UsageError(f"data.size={size} is too small: give at least 8 pixels")
        if fit not in HOW:
            raise UsageError(f"data.fit={fit} is none of {', '.join(HOW)}")
        self.root, self.size, self.fit = Path(root).expanduser(), size, fit
        self._opened: dict[str, Sourced] = {}

    def open(self, split: str) -> Sourced:
        """List the files of a split."""
        raise NotImplementedError(f"{type(self).__name__}.open")

    def dataset(self, split: str) -> Sourced:
        if split not in self._opened:
            check_looks(self.root, self.layout)
            self._opened[split] = self.open(split)
            bad = self._opened[split].source.bad
            if bad:
                warnings.warn(f"{self.root}, {split}: {len(bad)} left out as broken; the first: {bad[0]}", stacklevel=2)
        return self._opened[split]


def share(count: int, split: str, validation: float, test: float) -> range:
    """Return the places of a split in a list of samples that has none: first training, then validation, then test.

    Raises:
        UsageError: shares that leave nothing to train on.
    """
    check_shares(validation, test)
    first, second = (int(count * (1 - validation - test) + 1e-6), int(count * (1 - test) + 1e-6))
    return {"train": range(first), "validation": range(first, second), "test": range(second, count)}[split]


def drawn(texts: Sequence[str], split: str) -> str:
    """Return one of several texts: any of them in training, else the first; "" of none."""
    if len(texts) < 2 or split != "train":
        return texts[0] if texts else ""
    return texts[int(torch.randint(len(texts), ()))]


def _check_shapes(image: Photo, target: Photo) -> None:
    before, after = (photo.size[0] / photo.size[1] for photo in (image, target))
    if abs(before / after - 1) > ASPECTS:
        raise UserError(f"{image.name} is {by(image.size)} but {target.name} {by(target.size)}: the two need the same shape")


def _of_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a bool mask in another (width, height)."""
    if mask.shape == size[::-1]:
        return mask
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0


def _largest(things: Sequence[Thing], count: int) -> list[Thing]:
    """Return the largest, in their own order."""
    chosen = sorted(range(len(things)), key=lambda k: -things[k].area)[:count]
    return [things[k] for k in sorted(chosen)]


def _inside(part: Fit, thing: Thing) -> list[int] | None:
    """Return an object's box in pixels of the item, None if it lies outside."""
    height, width = part.size
    x0, y0, x1, y1 = (
        round(value * side) for value, side in zip(part.relative(thing.box), (width, height, width, height), strict=True)
    )
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def _mask(part: Fit, thing: Thing, box: Sequence[int]) -> torch.Tensor:
    if thing.mask is not None:
        return part.mask(thing.mask)[0]
    mask = torch.zeros(part.size)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask
