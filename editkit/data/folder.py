"""A user's own folder of pictures as a data module, with the items that the toy world has; `listing` says how it is laid out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from editkit.data.items import image_tensor
from editkit.data.listing import Entry, Listing, listing
from editkit.data.module import DataModule
from editkit.data.photo import Box, mask_of, read_photo
from editkit.data.readings import Readings
from editkit.errors import UsageError, UserError


class FolderDataset(Readings):
    """The pictures of some entries: the largest centred square, resized; masks and labels cut alike.

    Items hold image, key, index, caption, factors, visible, mask, references and labels (see `editkit.data.items`).

    Args:
        entries: what to read.
        size: side of the items in pixels.
    """

    def __init__(self, entries: tuple[Entry, ...], size: int = 64):
        super().__init__()
        self.entries, self.size = entries, size

    def __len__(self) -> int:
        return len(self.entries)

    def key(self, index: int) -> str:
        return self.entries[index].key

    def read(self, index: int) -> dict[str, Any]:
        return read_item(self.entries[index], self.size, index)


class Folder(DataModule):
    """A folder of the user's own pictures in three splits, by sub-folders or by a hash of each picture's path.

    Args:
        root: the folder.
        size: side of the items in pixels.
        validation, test: shares of the pictures where the folder has no sub-folders train, validation and test.

    Raises:
        UsageError: a size below 8 pixels, or shares that leave nothing to train on.
        UserError: from the data sets: no such folder, nothing readable in it, a broken metadata.jsonl, or an empty split.
    """

    def __init__(self, root: str | Path, size: int = 64, validation: float = 0.05, test: float = 0.05):
        super().__init__()
        if size < 8:
            raise UsageError(f"data.size={size} is too small: give at least 8 pixels")
        self.root, self.size, self.validation, self.test = Path(root), size, validation, test
        self._listing: Listing | None = None

    def dataset(self, split: str) -> FolderDataset:
        if self._listing is None:
            self._listing = listing(self.root, validation=self.validation, test=self.test)
            _warn_of_bad(self._listing)
        entries = self._listing.of(split)
        if not entries:
            raise UserError(
                f"{self.root} has no {split} pictures: put some into {self.root / split}, or give the folder at least 3 pictures"
            )
        return FolderDataset(entries, self.size)


def read_item(entry: Entry, size: int, index: int = 0) -> dict[str, Any]:
    """Read one picture with everything that is paired with it.

    Raises:
        UserError: one of the files cannot be used.
    """
    photo = read_photo(entry.image)
    box = _square(photo.size)
    return {
        "image": image_tensor(_resized(photo.seen(box), size)),
        "key": entry.key,
        "index": index,
        "caption": entry.text,
        "factors": entry.factors,
        "visible": {name: name not in entry.line.get("hidden", ()) for name in entry.factors},
        "mask": next((_mask(path, photo.size, box, size) for path in entry.files("masks")), None),
        "references": tuple(_reference(path, size) for path in entry.files("references")),
        "labels": next((_labels(path, photo.size, box, size) for path in entry.files("labels")), None),
    }


def _warn_of_bad(found: Listing) -> None:
    if found.bad:
        total = len(found.entries) + len(found.bad)
        warnings.warn(
            f"{len(found.bad)} of {total} pictures in {found.root} are left out; the first: {found.bad[0][1]}", stacklevel=3
        )


def _square(size: tuple[int, int]) -> Box:
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _resized(picture: Image.Image, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _reference(path: Path, size: int) -> Tensor:
    photo = read_photo(path)
    return image_tensor(_resized(photo.seen(_square(photo.size)), size))


def _mask(path: Path, image_size: tuple[int, int], box: Box, size: int) -> Tensor:
    """Return (1, size, size): 1 where at least half of the pixel is to be edited."""
    photo = read_photo(path)
    _same_size(path, photo.size, image_size)
    whole = Image.fromarray(mask_of(photo).astype(np.uint8) * 255).crop(box)
    cover = np.asarray(whole.resize((size, size), Image.Resampling.BOX))
    return torch.from_numpy((cover >= 128).astype(np.float32))[None]


def _labels(path: Path, image_size: tuple[int, int], box: Box, size: int) -> Tensor:
    """Return (size, size) int64 labels; the numbers of the file, not the colours of its palette."""
    try:
        picture = Image.open(path)
        picture.load()
    except OSError as error:
        raise UserError(f"{path} is not a picture editkit reads: {error}") from error
    if picture.mode not in ("P", "L", "I;16", "I"):
        raise UserError(
            f"the labels {path} have colours ({picture.mode}): save them as an indexed or greyscale PNG, one number a part"
        )
    _same_size(path, picture.size, image_size)
    numbers = Image.fromarray(np.asarray(picture).astype(np.int32)).crop(box)
    return torch.from_numpy(np.array(numbers.resize((size, size), Image.Resampling.NEAREST)).astype(np.int64))


def _same_size(path: Path, size: tuple[int, int], image_size: tuple[int, int]) -> None:
    if size != image_size:
        raise UserError(
            f"{path} is {size[0]} x {size[1]} pixels but its picture {image_size[0]} x {image_size[1]}: make them the same"
        )
