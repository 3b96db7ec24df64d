"""COCO: objects with masks and labels, and captions.

ROOT/annotations/instances_train2017.json, instances_val2017.json
ROOT/annotations/captions_train2017.json...     optional, about five a picture
ROOT/train2017/000000000009.jpg...              or under ROOT/images/
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from editkit.data.photo import by, read_photo
from editkit.data.published.records import Annotated, Objects, Published, Source, Thing, drawn
from editkit.data.published.rle import decode
from editkit.errors import UserError

PARTS = {"train": "train", "validation": "val", "test": "test"}


class CocoSource(Source):
    """The pictures of a split that have an object of a fit size; crowds are no objects.

    Args:
        root: the folder.
        split: train, validation (COCO's val) or test.
        year: of the release.
        area: smallest and largest share of the picture that an object's box may have.

    Raises:
        UserError: files that are missing or broken, or no picture that is left.
    """

    def __init__(self, root: Path, split: str, year: int, area: tuple[float, float]):
        part = f"{PARTS[split]}{year}"
        self.split, self.part = split, part
        path = root / "annotations" / f"instances_{part}.json"
        found = _read(path, split)
        self.folder = _folder(root, part)
        try:
            self.names = {category["id"]: category["name"] for category in found["categories"]}
            images = {image["id"]: image for image in found["images"]}
            self.things = _fit_ones(found["annotations"], images, area)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not COCO's: {_lacking(error)}") from error
        self.captions = _captions(root / "annotations" / f"captions_{part}.json")
        self.images = [image for number, image in sorted(images.items()) if number in self.things]
        bare = len(images) - len(self.images)
        self.notes = (f"{bare} of {len(images)} pictures of {part} have no object of a fit size: left out",) if bare else ()
        if not self.images:
            raise UserError(f"{path} has no picture with an object between {area[0]:.0%} and {area[1]:.0%} of it")

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        return f"{self.part}/{self.images[index]['file_name']}"

    def record(self, index: int) -> Annotated:
        image = self.images[index]
        photo = read_photo(self.folder / image["file_name"])
        if photo.size != (image["width"], image["height"]):
            said = by((image["width"], image["height"]))
            raise UserError(f"{photo.name} is {by(photo.size)} but its annotations are of {said}")
        things = tuple(self._thing(found, photo.size) for found in self.things[image["id"]])
        return Annotated(photo, things, drawn(self.captions.get(image["id"], ()), self.split))

    def _thing(self, found: dict[str, Any], size: tuple[int, int]) -> Thing:
        mask = decode(found["segmentation"], size) if found.get("segmentation") else None
        return Thing(str(self.names.get(found["category_id"], "")), _box(found), mask)


class Coco(Published):
    """COCO as items of `Objects`.

    Args:
        root: the folder.
        size: side of the items in pixels.
        year: of the release, part of the names of its files.
        objects: objects of an item, the largest where there are more.
        smallest, largest: shares of the picture that an object's box may have.
        fit: `crop` or `resize`.

    Raises:
        UsageError, UserError: as `Published`.
    """

    layout = "coco"

    def __init__(
        self,
        root: str | Path,
        size: int = 512,
        year: int = 2017,
        objects: int = 8,
        smallest: float = 0.02,
        largest: float = 0.8,
        fit: str = "crop",
    ):
        super().__init__(root, size, fit)
        self.year, self.objects, self.area = year, objects, (smallest, largest)

    def open(self, split: str) -> Objects:
        return Objects(CocoSource(self.root, split, self.year, self.area), self.size, self.fit, self.objects)


def _read(path: Path, split: str = "") -> dict[str, Any]:
    if not path.is_file():
        there = ", ".join(sorted(other.name for other in path.parent.glob("instances_*.json"))) or "none"
        raise UserError(f"there is no {path}, which the {split} split needs; there are: {there} (data.year chooses the release)")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): fetch it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not COCO's: expected an object with images, annotations and categories")
    return found


def _folder(root: Path, part: str) -> Path:
    for folder in (root / part, root / "images" / part):
        if folder.is_dir():
            return folder
    raise UserError(f"the pictures are missing: there is neither {root / part} nor {root / 'images' / part}")


def _fit_ones(
    annotations: list[dict[str, Any]], images: dict[int, dict[str, Any]], area: tuple[float, float]
) -> dict[int, list[dict[str, Any]]]:
    """Return the objects of a fit size, by picture."""
    kept = defaultdict(list)
    for found in annotations:
        image = images.get(found["image_id"])
        if image is None or found.get("iscrowd"):
            continue
        _, _, width, height = found["bbox"]
        if area[0] <= width * height / (image["width"] * image["height"]) <= area[1] and width > 0 and height > 0:
            kept[found["image_id"]].append(found)
    return dict(kept)


def _captions(path: Path) -> dict[int, list[str]]:
    texts = defaultdict(list)
    if path.is_file():
        try:
            for found in _read(path)["annotations"]:
                texts[found["image_id"]].append(" ".join(found["caption"].split()))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not COCO's: {_lacking(error)}") from error
    return dict(texts)


def _box(found: dict[str, Any]) -> tuple[float, float, float, float]:
    left, top, width, height = found["bbox"]
    return left, top, left + width, top + height


def _lacking(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
