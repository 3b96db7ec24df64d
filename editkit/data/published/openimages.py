"""OpenImages: objects with boxes and labels, and captions where Localized Narratives has them.

    ROOT/train-annotations-bbox.csv (or oidv6-train-..., and the same of validation and test)
    ROOT/class-descriptions-boxable.csv (or oidv7-...)   what the labels' codes mean
    ROOT/open_images_train_v6_captions.jsonl             optional
    ROOT/train/000002b66c9c498e.jpg                      or train_0/ to train_f/ by the id's first digit, or under images/
The tables may also lie in ROOT/annotations.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from editkit.data.photo import SUFFIXES, read_photo
from editkit.data.published.records import Annotated, Objects, Published, Source, Thing, drawn
from editkit.errors import UserError

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


@dataclass
class Boxes:
    """The boxes of a table in arrays, for the table of training has 15 million rows.

    Attributes:
        ids: the pictures.
        codes: the labels' codes.
        picture, code: of each box, an index into `ids` and `codes`.
        sides: of each box XMin, XMax, YMin, YMax, shares of the picture.
        bad: rows that are no boxes.
    """

    ids: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    picture: array[int] = field(default_factory=lambda: array("i"))
    code: array[int] = field(default_factory=lambda: array("i"))
    sides: array[float] = field(default_factory=lambda: array("d"))
    bad: int = 0


class OpenImagesSource(Source):
    """The pictures of a split that have a box of a fit size; boxes about groups are no objects.

    Args:
        root: the folder.
        split: train, validation or test.
        area: smallest and largest share of the picture that a box may have.

    Raises:
        UserError: files or columns that are missing, or no picture that is left.
    """

    def __init__(self, root: Path, split: str, area: tuple[float, float]):
        self.root, self.split = root, split
        path = _table(root, f"*{split}-annotations-bbox.csv", f"{split}-annotations-bbox.csv")
        names = class_names(_table(root, "*class-descriptions-boxable.csv", "class-descriptions-boxable.csv"))
        found = _boxes(path, area)
        self.ids, self.labels = found.ids, [names.get(code, code) for code in found.codes]
        order = np.argsort(np.asarray(found.picture), kind="stable")
        self.code = np.asarray(found.code)[order]
        self.sides = np.asarray(found.sides).reshape(-1, 4)[order]
        self.starts = np.searchsorted(np.asarray(found.picture)[order], np.arange(len(self.ids) + 1))
        self.captions = _captions(root, split)
        self.folders = [folder for base in (root, root / "images") for folder in base.glob(f"{split}*") if folder.is_dir()]
        self.bad = (f"{found.bad} rows of {path} are no boxes and are left out",) if found.bad else ()
        if not self.ids:
            raise UserError(f"{path} has no picture with a box between {area[0]:.0%} and {area[1]:.0%} of it")
        if not self.folders:
            raise UserError(f"the pictures are missing: there is neither {root / split} nor {root / f'{split}_0'}")

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, index: int) -> str:
        return f"{self.split}/{self.ids[index]}"

    def record(self, index: int) -> Annotated:
        name = self.ids[index]
        photo = read_photo(self._path(name))
        width, height = photo.size
        things = tuple(
            Thing(self.labels[self.code[k]], (x0 * width, y0 * height, x1 * width, y1 * height))
            for k in range(self.starts[index], self.starts[index + 1])
            for x0, x1, y0, y1 in [self.sides[k].tolist()]
        )
        return Annotated(photo, things, drawn(self.captions.get(name, ()), self.split))

    def _path(self, name: str) -> Path:
        """Return the picture of an id; it lies in any of the split's folders, most likely the one of its first digit."""
        for folder in sorted(self.folders, key=lambda folder: folder.name != f"{self.split}_{name[0]}"):
            for suffix in (".jpg", *sorted(SUFFIXES - {".jpg"})):
                if (folder / f"{name}{suffix}").is_file():
                    return folder / f"{name}{suffix}"
        raise UserError(f"there is no picture {name}.jpg in {', '.join(str(folder) for folder in self.folders[:3])}")


class OpenImages(Published):
    """OpenImages as items of `Objects`; an object's mask is its box.

    Args:
        root: the folder.
        size: side of the items in pixels.
        objects: objects of an item, the largest where there are more.
        smallest, largest: shares of the picture that a box may have.
        fit: `crop` or `resize`.

    Raises:
        UsageError, UserError: as `Published`.
    """

    layout = "openimages"

    def __init__(
        self,
        root: str | Path,
        size: int = 512,
        objects: int = 8,
        smallest: float = 0.02,
        largest: float = 0.8,
        fit: str = "crop",
    ):
        super().__init__(root, size, fit)
        self.objects, self.area = objects, (smallest, largest)

    def open(self, split: str) -> Objects:
        return Objects(OpenImagesSource(self.root, split, self.area), self.size, self.fit, self.objects)


def _tables(root: Path, pattern: str) -> list[Path]:
    return sorted((*root.glob(pattern), *root.glob(f"annotations/{pattern}")))


def _table(root: Path, pattern: str, usual: str) -> Path:
    for path in _tables(root, pattern):
        return path
    there = ", ".join(path.name for path in _tables(root, "*.csv")) or "none"
    raise UserError(f"there is no {usual} in {root} or {root / 'annotations'}; tables there: {there}")


def _rows(path: Path) -> Iterator[list[str]]:
    """Yield the cells of each row in the order of COLUMNS, then IsGroupOf; [] for a row that is cut off."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        head = next(rows, [])
        for name in COLUMNS:
            if name not in head:
                raise UserError(f"{path} has no column {name}; its columns are: {', '.join(head) or 'none'}")
        places = [head.index(name) for name in (*COLUMNS, *(["IsGroupOf"] if "IsGroupOf" in head else []))]
        for row in rows:
            yield [row[place] for place in places] if len(row) == len(head) else []


def _boxes(path: Path, area: tuple[float, float]) -> Boxes:
    found = Boxes()
    pictures: dict[str, int] = {}
    codes: dict[str, int] = {}
    for row in _rows(path):
        try:
            name, code, *sides = row[:6]
            x0, x1, y0, y1 = map(float, sides)
        except ValueError:
            found.bad += 1
            continue
        if row[6:] == ["1"] or not (x0 < x1 and y0 < y1 and area[0] <= (x1 - x0) * (y1 - y0) <= area[1]):
            continue
        found.picture.append(pictures.setdefault(name, len(pictures)))
        found.code.append(codes.setdefault(code, len(codes)))
        found.sides.extend((x0, x1, y0, y1))
    found.ids, found.codes = list(pictures), list(codes)
    return found


def class_names(path: Path) -> dict[str, str]:
    """Return what the codes mean; releases differ in whether the table has a head."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: row[1] for row in csv.reader(file) if len(row) > 1 and row[0].startswith("/")}


def _captions(root: Path, split: str) -> dict[str, list[str]]:
    texts = defaultdict(list)
    for path in _tables(root, f"open_images_{split}*captions.jsonl"):
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    found = json.loads(line)
                    texts[found["image_id"]].append(found["caption"].strip())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise UserError(f"{path}, line {number} has no image_id and caption in JSON") from error
    return dict(texts)
