"""MagicBrush: turns of editing by hand, with the region that was free to change.

    ROOT/data/train-*.parquet, dev-*.parquet    img_id, turn_index, source_img, mask_img, instruction, target_img
`mask_img` is the source with a hole: transparent there, or white where the file kept no alpha. Its size may differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from editkit.data.photo import Photo
from editkit.data.published.known import parquet_files
from editkit.data.published.records import Pair, Pairs, Published, Source
from editkit.data.published.tables import Table, picture
from editkit.errors import UserError

PARTS = {"train": "train", "validation": "dev", "test": "test"}
COLUMNS = ("img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img")


class MagicBrushSource(Source):
    """One sample a turn.

    Args:
        root: the folder.
        split: train, validation (its dev) or test.

    Raises:
        UserError: as `Table`, or no files of the split.
    """

    def __init__(self, root: Path, split: str):
        self.root = root
        files = [path for path in parquet_files(root) if path.name.startswith(PARTS[split])]
        if not files:
            there = ", ".join(path.name for path in parquet_files(root)[:3])
            raise UserError(f"{root} has no {PARTS[split]}-*.parquet, which the {split} split needs; there are: {there}")
        self.table = Table(files, COLUMNS)
        self.bad, self.blocks = tuple(self.table.bad), self.table.groups

    def __len__(self) -> int:
        return len(self.table)

    def key(self, index: int) -> str:
        return self.table.name(index)

    def record(self, index: int) -> Pair:
        row = self.table.row(index)
        name = f"{self.key(index)} ({row['img_id']}, turn {row['turn_index']})"
        image = picture(row["source_img"], self.root, f"{name}, source_img")
        hole = picture(row["mask_img"], self.root, f"{name}, mask_img") if row["mask_img"] is not None else None
        return Pair(
            image=image,
            target=picture(row["target_img"], self.root, f"{name}, target_img"),
            instruction=row["instruction"] or "",
            mask=None if hole is None else region(hole, image),
        )


class MagicBrush(Published):
    """MagicBrush as items of `Pairs`.

    Args:
        root: the folder.
        size: side of the items in pixels.
        fit: `crop` or `resize`.

    Raises:
        UsageError, UserError: as `Published`.
    """

    layout = "magicbrush"

    def __init__(self, root: str | Path, size: int = 512, fit: str = "crop"):
        super().__init__(root, size, fit)

    def open(self, split: str) -> Pairs:
        return Pairs(MagicBrushSource(self.root, split), self.size, self.fit)


def region(hole: Photo, image: Photo) -> np.ndarray:
    """Return where a picture with a hole may change: bool (H, W) of the picture with the hole.

    Raises:
        UserError: it has no hole.
    """
    if hole.alpha is not None and (hole.alpha == 0).any():
        return hole.alpha == 0
    source = np.asarray(Image.fromarray(image.rgb).resize(hole.size, Image.Resampling.NEAREST))
    white = (hole.rgb == 255).all(axis=-1) & (source != 255).any(axis=-1)
    if not white.any():
        raise UserError(f"{hole.name} has no hole: expected transparent pixels, or white ones where the source has others")
    return white
