"""InstructPix2Pix: pictures before and after an instruction, as its authors or as the hub distribute them.

    ROOT/seeds.json                          [["shard-00/0000012", ["1053250310", ...]], ...]
    ROOT/shard-00/0000012/prompt.json        {"input" (or "caption"), "edit", "output"}
    ROOT/shard-00/0000012/1053250310_0.jpg   before, _1.jpg after; up to four pairs of an instruction
or  ROOT/data/train-*.parquet                original_image, edit_prompt, edited_image; original_prompt, edited_prompt
Where there is no seeds.json, the folders say what there is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from editkit.data.files import inside
from editkit.data.photo import read_photo
from editkit.data.published.known import parquet_files
from editkit.data.published.records import Pair, Pairs, Published, Source, drawn, share
from editkit.data.published.tables import Table, picture
from editkit.errors import UserError

NEEDED, WANTED = ("original_image", "edit_prompt", "edited_image"), ("original_prompt", "edited_prompt")


class FolderSource(Source):
    """One sample an instruction; in training any of its pairs, else the first.

    Args:
        root: the folder.
        split: train, validation or test, by position as in the released code.
        validation, test: shares of the instructions.

    Raises:
        UserError: a broken seeds.json, or no instruction in this split.
    """

    def __init__(self, root: Path, split: str, validation: float, test: float):
        self.root, self.split = root, split
        seeds = _seeds(root)
        self.seeds = [seeds[k] for k in share(len(seeds), split, validation, test)]
        if not self.seeds:
            raise UserError(f"{root} has {len(seeds)} instructions, and none of them falls to {split}: raise data.{split}")

    def __len__(self) -> int:
        return len(self.seeds)

    def key(self, index: int) -> str:
        return self.seeds[index][0]

    def record(self, index: int) -> Pair:
        name, seeds = self.seeds[index]
        folder = inside(self.root, name)
        prompt = _prompt(folder / "prompt.json")
        seed = drawn(seeds, self.split)
        return Pair(
            image=read_photo(folder / f"{seed}_0.jpg"),
            target=read_photo(folder / f"{seed}_1.jpg"),
            instruction=prompt.get("edit") or "",
            caption=prompt.get("input") or prompt.get("caption") or "",
            target_caption=prompt.get("output") or "",
        )


class ParquetSource(Source):
    """One sample a row, of the files of the split or, where there are none, of the last rows of training.

    Args:
        root: the folder.
        split: train, validation or test.
        validation, test: shares of the rows of training for splits that have no files.

    Raises:
        UserError: as `Table`, or no row in this split.
    """

    def __init__(self, root: Path, split: str, validation: float, test: float):
        self.root = root
        files = {name: [path for path in parquet_files(root) if path.name.startswith(name)] for name in ("validation", "test")}
        own = {path for paths in files.values() for path in paths}
        rest = [path for path in parquet_files(root) if path not in own]
        self.table = Table(files.get(split) or rest, NEEDED, WANTED)
        self.rows = range(len(self.table))
        if not files.get(split):
            self.rows = share(len(self.table), split, 0 if files["validation"] else validation, 0 if files["test"] else test)
        self.bad, self.blocks = tuple(self.table.bad), self.table.blocks(self.rows)
        if not self.rows:
            raise UserError(f"{root} has {len(self.table)} rows, and none of them falls to {split}: raise data.{split}")

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.table.name(self.rows[index])

    def record(self, index: int) -> Pair:
        row, name = self.table.row(self.rows[index]), self.key(index)
        return Pair(
            image=picture(row["original_image"], self.root, f"{name}, original_image"),
            target=picture(row["edited_image"], self.root, f"{name}, edited_image"),
            instruction=row["edit_prompt"] or "",
            caption=row.get("original_prompt") or "",
            target_caption=row.get("edited_prompt") or "",
        )


class InstructPix2Pix(Published):
    """InstructPix2Pix as items of `Pairs`.

    Args:
        root: the folder.
        size: side of the items in pixels.
        validation, test: shares, taken from the end of the list.
        fit: `crop` or `resize`.

    Raises:
        UsageError, UserError: as `Published`.
    """

    layout = "instructpix2pix"

    def __init__(self, root: str | Path, size: int = 256, validation: float = 0.05, test: float = 0.05, fit: str = "crop"):
        super().__init__(root, size, fit)
        self.shares = (validation, test)

    def open(self, split: str) -> Pairs:
        source = ParquetSource if parquet_files(self.root) else FolderSource
        return Pairs(source(self.root, split, *self.shares), self.size, self.fit)


def _seeds(root: Path) -> list[tuple[str, list[str]]]:
    """Return the folders with their seeds, in the order of their names."""
    path = root / "seeds.json"
    if not path.is_file():
        folders = sorted(file.parent for file in root.rglob("prompt.json"))
        found = ((folder, sorted(p.name.removesuffix("_0.jpg") for p in folder.glob("*_0.jpg"))) for folder in folders)
        return [(folder.relative_to(root).as_posix(), seeds) for folder, seeds in found if seeds]
    try:
        seeds = [(str(name), [str(seed) for seed in several]) for name, several in json.loads(path.read_bytes())]
    except (ValueError, TypeError) as error:
        raise UserError(f'{path} is not [["FOLDER", ["SEED", ...]], ...] in JSON: {error}') from error
    return [(name, several) for name, several in seeds if several]


def _prompt(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("edit"), str):
        raise UserError(f'{path} has no "edit", the instruction')
    return found
