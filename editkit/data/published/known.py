"""The layouts that are known: what tells each from the others, and what it can hold. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from editkit.errors import UserError


@dataclass(frozen=True)
class Layout:
    """One layout.

    Attributes:
        name: of data=NAME.
        title: what messages call it.
        expected: what its folder holds.
        module: its data module.
        looks: says whether a folder looks like it, from a few names in it.
        offers: what it can hold besides images, with what to do where that is missing.
        exemplars: of data=NAME, its objects as exemplar pairs; "" for none.
    """

    name: str
    title: str
    expected: str
    module: str
    looks: Callable[[Path], bool]
    offers: Mapping[str, str] = field(default_factory=dict)
    exemplars: str = ""

    def chosen(self, root: Path, wanted: Collection[str] = ()) -> str:
        """Return the overrides that choose it for a method that wants these things."""
        pairs = self.exemplars and "references" in wanted
        return f"data={self.exemplars} data.inner.root={root}" if pairs else f"data={self.name} data.root={root}"

    def opened(self, root: Path, size: int) -> Any:
        """Return its data module over a folder."""
        name, _, kind = self.module.rpartition(".")
        return getattr(import_module(f"{__package__}.{name}"), kind)(root, size)


def recognised(root: Path) -> Layout | None:
    """Return the layout that a folder looks like, None for a plain folder of pictures."""
    return next((layout for layout in LAYOUTS if layout.looks(root)), None)


def named(name: str) -> Layout:
    """Return the layout of a name. Raises StopIteration for an unknown one."""
    return next(layout for layout in LAYOUTS if layout.name == name)


def check_looks(root: Path, name: str) -> None:
    """Check that a folder looks like the layout of a name.

    Raises:
        UserError: no such folder, or another layout; the message says which it looks like and what was expected.
    """
    wanted = named(name)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of {wanted.title}")
    if wanted.looks(root):
        return
    other = recognised(root)
    seen = f"it looks like {other.title}: use data={other.name}" if other else "it looks like none of the layouts that are known"
    raise UserError(f"{root} is not laid out like {wanted.title}, expected {wanted.expected}; {seen}")


def parquet_files(root: Path) -> list[Path]:
    """Return the parquet files of a downloaded hub repository: directly in the folder or in data/."""
    return sorted((*root.glob("*.parquet"), *root.glob("data/*.parquet")))


def _columns(root: Path, *columns: str) -> bool:
    """Say whether the first parquet file names one of these columns; its footer spells them out, so no library is needed."""
    for path in parquet_files(root)[:1]:
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 1 << 20), 2)
            footer = file.read()
        return any(column.encode() in footer for column in columns)
    return False


def _coco(root: Path) -> bool:
    return any(root.glob("annotations/instances_*.json"))


def _openimages(root: Path) -> bool:
    return any(root.glob("*-annotations-bbox.csv")) or any(root.glob("annotations/*-annotations-bbox.csv"))


def _instructpix2pix(root: Path) -> bool:
    folders = (root / "seeds.json").is_file() or any(root.glob("*/prompt.json")) or any(root.glob("*/*/prompt.json"))
    return folders or _columns(root, "original_image", "edit_prompt", "edited_image")


def _magicbrush(root: Path) -> bool:
    return _columns(root, "source_img", "target_img")


def _webdataset(root: Path) -> bool:
    return any(root.glob("*.tar")) or any(root.glob("*/*.tar"))


LAYOUTS = (
    Layout(
        "coco",
        "COCO",
        "annotations/instances_train2017.json and the pictures in train2017/",
        "coco.Coco",
        _coco,
        {
            "captions": "put captions_train2017.json into annotations/",
            "masks": "the picture has no object of a fit size: it is left out of training",
            "references": "the picture has no object of a fit size: it is left out of training",
        },
        exemplars="coco_exemplars",
    ),
    Layout(
        "openimages",
        "OpenImages",
        "train-annotations-bbox.csv and class-descriptions-boxable.csv, there or in annotations/, and the pictures in train/ or "
        "train_0/...",
        "openimages.OpenImages",
        _openimages,
        {
            "captions": "put open_images_train_v6_captions.jsonl of Localized Narratives beside the boxes",
            "masks": "the picture has no box of a fit size: it is left out of training",
            "references": "the picture has no box of a fit size: it is left out of training",
        },
        exemplars="openimages_exemplars",
    ),
    Layout(
        "magicbrush",
        "MagicBrush",
        "data/train-*.parquet with source_img, mask_img, instruction and target_img",
        "magicbrush.MagicBrush",
        _magicbrush,
        {
            "instructions": "the column instruction is empty there",
            "targets": "the column target_img is empty there",
            "masks": "the column mask_img is empty there",
        },
    ),
    Layout(
        "instructpix2pix",
        "InstructPix2Pix",
        "seeds.json and folders of prompt.json, SEED_0.jpg and SEED_1.jpg, or data/*.parquet with original_image, edit_prompt "
        "and edited_image",
        "instructpix2pix.InstructPix2Pix",
        _instructpix2pix,
        {
            "instructions": 'give prompt.json an "edit", or the column edit_prompt a text',
            "targets": "put SEED_1.jpg beside SEED_0.jpg",
            "captions": 'give prompt.json an "input", or the file a column original_prompt',
            "target_texts": 'give prompt.json an "output", or the file a column edited_prompt',
        },
    ),
    Layout(
        "webdataset",
        "WebDataset shards",
        "*.tar with KEY.jpg and KEY.txt or KEY.json beside it",
        "webdataset.WebDataset",
        _webdataset,
        {
            "captions": 'add KEY.txt, or a "caption" in KEY.json',
            "instructions": 'add KEY.instruction.txt, or an "instruction" in KEY.json',
            "targets": "add KEY.target.jpg",
            "masks": "add KEY.mask.png, white = edit here",
            "references": "add KEY.reference.jpg",
        },
    ),
)
