"""From what a person typed to a list of jobs: which pictures with which masks, references and texts, written where.

A folder of pictures is laid out like a data set (`editkit.data.listing`); other inputs are folders too, paired by name
without suffix, or one file for all. Its `metadata.jsonl` may add inputs per picture: `{"file_name": "a.png", "prompt":
"...", "mask": "masks/a.png"}`. Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editkit.app.options import EditOptions
from editkit.data.align import read_landmarks
from editkit.data.files import inside
from editkit.data.listing import Entry, listing
from editkit.data.photo import SUFFIXES
from editkit.errors import UsageError, UserError

# Options that are files, by the field of EditRequest that they fill.
FILES = {
    "mask": "mask",
    "references": "reference",
    "reference_masks": "reference_mask",
    "sketch": "sketch",
    "segmentation": "segmentation",
    "stroke": "stroke",
    "example_before": "example_before",
    "example_after": "example_after",
}
TEXTS = ("prompt", "source_prompt", "instruction", "labels", "box", "landmarks")
# Where a folder of pictures, laid out like a data set, keeps inputs of each picture.
COMPANIONS = {
    "masks": "mask",
    "references": "references",
    "reference_masks": "reference_masks",
    "sketches": "sketch",
    "labels": "segmentation",
}


@dataclass(frozen=True)
class Job:
    """One picture and all that was said about it.

    Attributes:
        key: the picture's path in its folder, "" without a picture; noise is drawn from it.
        image: the picture; None for methods that start from noise.
        files: other inputs that are files, by field of EditRequest.
        texts: inputs that are texts, by field of EditRequest.
        output: where the result goes if there is only one.
    """

    key: str
    image: Path | None
    files: Mapping[str, tuple[Path, ...]]
    texts: Mapping[str, str]
    output: Path

    def fields(self) -> set[str]:
        """Return the fields of EditRequest that this job fills."""
        return {*self.files, *self.texts} | ({"image"} if self.image else set())

    def paths(self) -> list[Path]:
        """Return all input files."""
        return [*([self.image] if self.image else []), *(path for paths in self.files.values() for path in paths)]


@dataclass(frozen=True)
class Plan:
    """All jobs of a command.

    Attributes:
        folder: the folder of results when the input is a folder, else None.
        broken: pictures whose inputs cannot be paired, with the reason.
    """

    jobs: list[Job]
    folder: Path | None = None
    broken: dict[str, str] = field(default_factory=dict)

    def share(self, shard: str) -> Plan:
        """Return a share of a folder, `I/N`: every N-th picture from the I-th on. All shares together are the whole.

        Raises:
            UsageError: not of this form, or a single picture.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", shard)
        index, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if index >= count:
            raise UsageError(f"--shard {shard} is not I/N with I below N, such as 0/4 for the first of four")
        if self.folder is None:
            raise UsageError(f"--shard {shard} is a share of a folder, but --image is one picture")
        return Plan(self.jobs[index::count], self.folder, dict(list(self.broken.items())[index::count]))


def plan(options: EditOptions, *, name: str, wants: Collection[str] = ("mask",)) -> Plan:
    """Return the jobs of `editkit edit`.

    Args:
        name: of the method, for the default output <stem>.<name>.png.
        wants: fields of EditRequest that the method can use; of a folder's masks, references... only these are taken up.

    Raises:
        UsageError: a file where a folder is needed or the other way round, or an output that is no PNG.
        UserError: no such input, or a folder without pictures.
    """
    source = options.image
    if source is not None and source.is_dir():
        return _folder_plan(options, source, name, wants)
    if source is not None and not source.exists():
        raise UserError(f"there is no file or folder {source} (--image)")
    files: dict[str, tuple[Path, ...]] = {}
    for target, paths in _given_files(options).items():
        for path in paths:
            if path.is_dir():
                raise UsageError(f"{path} is a folder, but --image is one file: give one file here too")
            if not path.exists():
                raise UserError(f"there is no file {path} (--{FILES[target].replace('_', '-')})")
        files[target] = tuple(paths)
    output, key = _single_output(options.output, source, name), source.name if source else ""
    texts = _texts(options) | _landmarks_of(key, _landmarks(options.landmarks))
    return Plan([Job(key, source, files, texts, output)])


def variant(output: Path, strengths: Sequence[float | None], strength: float | None, samples: int, sample: int) -> Path:
    """Return the file of one of several results for a picture: face.strength-0.5.2.png; face.png if it is the only one."""
    marks = [f"strength{strength:+g}"] if len(strengths) > 1 else []
    marks += [str(sample + 1)] if samples > 1 else []
    return output.with_name(".".join([output.stem, *marks]) + output.suffix)


def _folder_plan(options: EditOptions, source: Path, name: str, wants: Collection[str]) -> Plan:
    output = options.output or Path(f"{source.resolve().name}.{name}")
    if output.suffix.lower() in SUFFIXES or output.is_file():
        raise UsageError(f"--image is a folder, so -o must be one too, not the file {output}")
    if output.exists() and output.samefile(source):
        raise UsageError(f"the results of the folder {source} cannot go into the same folder: choose another one with -o")
    typed = _given_files(options)
    # Earlier results and folders that were given as another input hold no pictures to edit.
    skip = [folder.resolve() for folder in (output, *(path for paths in typed.values() for path in paths)) if folder.is_dir()]
    found = listing(source)
    entries = [entry for entry in found.entries if not _below(entry.image, skip)]
    bad = {key: reason for key, reason in found.bad if not _below(source / key, skip)}
    if not entries and not bad:
        raise UserError(f"there are no pictures in {source} apart from masks, references and earlier results")
    images = "images/" if (source / "images").is_dir() else ""
    table = _landmarks(options.landmarks)
    if isinstance(table, str):
        raise UsageError("--image is a folder, so --landmarks must be a table: a file name and ten numbers a line")
    stems = Counter(Path(key).with_suffix("") for key in (*bad, *(entry.key for entry in entries)))
    jobs, broken = [], {key.removeprefix(images): reason for key, reason in bad.items()}
    for entry in entries:
        relative = Path(entry.key.removeprefix(images))
        # Two pictures of one stem (a.jpg, a.png) keep their suffix in the name.
        target = relative.with_suffix(".png") if stems[Path(entry.key).with_suffix("")] == 1 else Path(f"{relative}.png")
        try:
            own = {field: tuple(_paired(path, relative) for path in paths) for field, paths in typed.items()}
            row_files, row_texts = _row_inputs(source, entry.line)
            files = _companions(entry, wants) | own | row_files
            texts = _texts(options) | _landmarks_of(relative.as_posix(), table) | row_texts
            jobs.append(Job(relative.as_posix(), entry.image, files, texts, inside(output, target)))
        except UserError as error:
            broken[relative.as_posix()] = str(error)
    return Plan(jobs, output, broken)


def _below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def _companions(entry: Entry, wants: Collection[str]) -> dict[str, tuple[Path, ...]]:
    """Return the files that lie beside a picture in the folder's own layout, as far as the method can use them."""
    return {field: entry.files(folder) for folder, field in COMPANIONS.items() if field in wants and entry.files(folder)}


def _paired(path: Path, relative: Path) -> Path:
    """Return the file of a folder that has the picture's name, whatever its suffix; a file is for all pictures."""
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no file or folder {path}")
        return path
    folder, stem = path / relative.parent, relative.stem
    matches = sorted(entry for entry in folder.glob("*") if entry.stem == stem and entry.suffix.lower() in SUFFIXES)
    if len(matches) != 1:
        count = f"{len(matches)} files" if matches else "no file"
        raise UserError(f"{path} has {count} named {relative.with_suffix('')}.*, one is needed")
    return matches[0]


def _row_inputs(folder: Path, row: Mapping[str, Any]) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    files = {}
    for target in FILES:
        value = row.get(target)
        if value:
            paths = [inside(folder, name) for name in ([value] if isinstance(value, str) else value)]
            for path in paths:
                if not path.is_file():
                    raise UserError(f"metadata.jsonl names {target} {path}, which does not exist")
            files[target] = tuple(paths)
    return files, {name: str(row[name]) for name in TEXTS if row.get(name)}


def _given_files(options: EditOptions) -> dict[str, list[Path]]:
    given: Iterator[tuple[str, Any]] = ((target, getattr(options, name)) for target, name in FILES.items())
    return {target: list(value) if isinstance(value, list) else [value] for target, value in given if value}


def _texts(options: EditOptions) -> dict[str, str]:
    return {name: getattr(options, name) for name in TEXTS if name != "landmarks" and getattr(options, name)}


def _landmarks(given: str | None) -> Mapping[str, str] | str | None:
    """Return the table that --landmarks names, or its ten numbers as they were typed."""
    return read_landmarks(Path(given)) if given and Path(given).is_file() else given


def _landmarks_of(key: str, found: Mapping[str, str] | str | None) -> dict[str, str]:
    if not found:
        return {}
    if isinstance(found, str):
        return {"landmarks": found}
    text = found.get(key) or found.get(Path(key).name)
    if text is None:
        raise UserError(f"--landmarks has no line for {key}")
    return {"landmarks": text}


def _single_output(output: Path | None, source: Path | None, name: str) -> Path:
    own = f"{source.stem}.{name}.png" if source else f"{name}.png"
    if output is None:
        return Path(own)
    if output.is_dir() or (not output.suffix and not output.is_file()):
        return output / own
    if output.suffix.lower() != ".png":
        raise UsageError(f"results are written as PNG: -o {output.with_suffix('.png')}, or a folder, not {output}")
    return output
