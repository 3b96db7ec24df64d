"""What lies in a user's folder: pictures, their captions, masks, references and labels, and the split of each picture.

    FOLDER/images/*.png|jpg|webp...   or the pictures directly in FOLDER, in sub-folders or not
    FOLDER/metadata.jsonl             optional: {"file_name": "images/a.png", "text": "a caption"} a line
    FOLDER/masks/a.png                optional, paired by stem: white = edit here
    FOLDER/references/a.png           optional, paired by stem; or several in FOLDER/references/a/
    FOLDER/labels/a.png               optional, paired by stem: part labels as an indexed PNG
or the same under FOLDER/train, FOLDER/validation and FOLDER/test, which then are the splits. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editkit.data.photo import SUFFIXES, read_photo
from editkit.data.published.known import recognised
from editkit.errors import UsageError, UserError

SPLITS = ("train", "validation", "test")
# Folders whose files are paired with pictures by stem.
COMPANIONS = ("masks", "references", "reference_masks", "sketches", "labels")
SEVERAL = ("references", "reference_masks")  # where FOLDER/references/a/ may hold several files for a


@dataclass(frozen=True)
class Entry:
    """One picture and what is paired with it.

    Attributes:
        key: path of the picture relative to the folder, with forward slashes.
        split: train, validation or test.
        line: its line in metadata.jsonl.
        companions: the files paired with it, by the names of COMPANIONS.
    """

    key: str
    image: Path
    split: str
    line: Mapping[str, Any] = field(default_factory=dict)
    companions: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Its caption, "" if it has none."""
        return self.line.get("text") or ""

    @property
    def factors(self) -> dict[str, Any]:
        """What is known about it, {} if nothing is."""
        return self.line.get("factors") or {}

    def files(self, companion: str) -> tuple[Path, ...]:
        """Return the files of one companion folder that are paired with it."""
        return self.companions.get(companion, ())


@dataclass(frozen=True)
class Listing:
    """A folder's readable pictures in the order of their keys, and the unreadable ones with the reason."""

    root: Path
    entries: tuple[Entry, ...]
    bad: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]  # lines of metadata.jsonl, masks... that belong to no picture

    def of(self, split: str) -> tuple[Entry, ...]:
        """Return the entries of one split."""
        return tuple(entry for entry in self.entries if entry.split == split)


def listing(root: str | Path, *, validation: float = 0.05, test: float = 0.05) -> Listing:
    """List a folder.

    Without split sub-folders a picture's split follows from a hash of its key, so it stays when others are added; only a
    split that would come out empty takes the picture nearest to it (from three pictures on).

    Args:
        validation, test: shares of the pictures, 0 to 1.

    Raises:
        UserError: no such folder, no readable picture in it, or a broken metadata.jsonl.
        UsageError: shares that leave nothing to train on.
    """
    check_shares(validation, test)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data.root to the folder of your images")
    parts = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if "train" in parts:
        found = [_part(root, folder, split) for split, folder in parts.items()]
    else:
        found = [_part(root, root, None)]
    entries, unused = [e for part, _ in found for e in part], tuple(u for _, rest in found for u in rest)
    with ThreadPoolExecutor() as pool:  # slow disks answer several questions at once
        checked = pool.map(quick_check, [entry.image for entry in entries])
        reasons = {entry.key: reason for entry, reason in zip(entries, checked, strict=True) if reason is not None}
    good = [entry for entry in entries if entry.key not in reasons]
    if not good:
        raise UserError(_nothing(root, reasons))
    if "train" not in parts:
        good = _hashed(good, validation, test)
    return Listing(root, tuple(sorted(good, key=lambda e: e.key)), tuple(sorted(reasons.items())), unused)


def check_shares(validation: float, test: float) -> None:
    """Raise UsageError for shares of the pictures, 0 to 1, that leave nothing to train on."""
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UsageError(
            f"data.validation={validation} and data.test={test} leave nothing to train on: their sum must be below 1"
        )


def quick_check(path: Path) -> str | None:
    """Say what is wrong with a picture file, or None; fast, because it decodes only a file whose ends are odd."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            file.seek(-min(12, path.stat().st_size), 2)
            tail = file.read()
    except OSError as error:
        return f"cannot read {path}: {error.strerror or error}"
    if head.startswith(b"\x89PNG\r\n\x1a\n") and tail[4:8] == b"IEND":
        return None
    if head.startswith(b"\xff\xd8\xff") and tail.endswith(b"\xff\xd9"):
        return None
    return full_check(path)


def full_check(path: Path) -> str | None:
    """Decode a picture and say what is wrong with it, or None."""
    try:
        read_photo(path)
    except UserError as error:
        return str(error)
    return None


def fraction(key: str) -> float:
    """Return the place in [0, 1) that a picture's key hashes to; it decides the split."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _nothing(root: Path, reasons: dict[str, str]) -> str:
    if reasons:
        return f"none of the {len(reasons)} pictures in {root} can be read; the first: {next(iter(reasons.values()))}"
    layout = recognised(root)
    if layout is not None:
        return f"there are no pictures in {root}: it looks like {layout.title}, use data={layout.name}"
    return f"there are no pictures in {root}: expected files that end in {', '.join(sorted(SUFFIXES))}"


def _part(root: Path, folder: Path, split: str | None) -> tuple[list[Entry], list[str]]:
    images = folder / "images" if (folder / "images").is_dir() else folder
    paths = [path for path in _pictures(images) if images != folder or path.relative_to(folder).parts[0] not in COMPANIONS]
    lines = _metadata(folder, images)
    pairs = {name: _paired(folder / name) for name in COMPANIONS}
    entries, used = [], set()
    for path in paths:
        stem = path.relative_to(images).with_suffix("").as_posix()
        used.add(stem)
        companions = {name: pair[stem] for name, pair in pairs.items() if stem in pair}
        entries.append(Entry(path.relative_to(root).as_posix(), path, split or "train", lines.pop(path, {}), companions))
    unused = [f"metadata.jsonl names {path.name}, which is not there" for path in lines]
    unused += [f"{name}/{stem} belongs to no picture" for name, pair in pairs.items() for stem in pair if stem not in used]
    return entries, unused


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _paired(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Return the files of a companion folder by the stem that they belong to: a.png and a/1.png both belong to "a"."""
    pairs: dict[str, tuple[Path, ...]] = {}
    for path in _pictures(folder):
        relative = path.relative_to(folder).with_suffix("").as_posix()
        pairs[relative] = (*pairs.get(relative, ()), path)
        parent = path.parent.relative_to(folder).as_posix()
        if folder.name in SEVERAL and parent != ".":
            pairs[parent] = (*pairs.get(parent, ()), path)
    return pairs


def _metadata(folder: Path, images: Path) -> dict[Path, dict[str, Any]]:
    lines: dict[Path, dict[str, Any]] = {}
    for home in dict.fromkeys((folder, images)):
        path = home / "metadata.jsonl"
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
            if not text.strip():
                continue
            line = _line(path, number, text)
            name = line["file_name"]
            lines[images / name if (images / name).is_file() else home / name] = line
    return lines


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path}, line {number} is not JSON ({error}): a line is " + '{"file_name": "a.png", "text": "a caption"}'
        ) from error
    if isinstance(line, dict) and "image" in line:  # as the lines of CycleNet's prompt.json name it
        line.setdefault("file_name", line["image"])
    if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
        raise UserError(f'{path}, line {number} has no "file_name": a line is ' + '{"file_name": "a.png", "text": "a caption"}')
    if not isinstance(line.get("text") or "", str) or not isinstance(line.get("factors") or {}, dict):
        raise UserError(f'{path}, line {number}: "text" must be a string and "factors" an object')
    return line


def _hashed(entries: list[Entry], validation: float, test: float) -> list[Entry]:
    ranked = sorted(entries, key=lambda entry: fraction(entry.key))
    if len(ranked) < 3:
        return ranked  # all of them to train on
    tested = max(sum(fraction(e.key) < test for e in ranked), int(test > 0))
    held = max(sum(fraction(e.key) < test + validation for e in ranked), tested + int(validation > 0))
    return [
        replace(entry, split="test" if rank < tested else "validation" if rank < held else "train")
        for rank, entry in enumerate(ranked)
    ]
