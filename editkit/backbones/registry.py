"""The published weights that editkit knows: read from assets/weights.yaml, which says what each key means."""

from __future__ import annotations

import fnmatch
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.errors import UsageError, suggestion

FILE = Path(__file__).parent.parent / "assets" / "weights.yaml"
HUB_FILES = ("*.json", "*.safetensors", "*.txt")  # what is taken of a repository whose entry does not say
SHORTEST = 8  # hex digits that a publisher's file names state


@dataclass(frozen=True)
class File:
    """One file of published weights.

    Attributes:
        name: its name; it lies in FOLDER/ENTRY/NAME.
        bytes: its size, or None.
        sha256: its hash, at least the first 8 hex digits, or None.
        md5: its hash where the publisher states no better, or None.
        sources: addresses, tried in this order; none = a person has to fetch it.
    """

    name: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None
    sources: tuple[str, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether a hash is known."""
        return bool(self.sha256 or self.md5)

    def problem(self, path: Path) -> str | None:
        """Return how a file differs from this one, or None; without a hash only its size can differ."""
        size = path.stat().st_size
        if self.bytes is not None and size != self.bytes:
            return f"{size:,} bytes instead of {self.bytes:,}"
        kind, wanted = ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)
        if wanted is None:
            return None
        found = digest(path, kind)
        return None if found.startswith(wanted) else f"{kind} {found[:16]}... instead of {wanted[:16]}..."


@dataclass(frozen=True)
class Entry:
    """Weights that belong together; the attributes are the keys of assets/weights.yaml.

    Attributes:
        methods: those that need them.
    """

    name: str
    summary: str
    licence: str
    methods: tuple[str, ...]
    page: str
    layout: str | None = None
    into: str | None = None
    note: str | None = None
    revision: str | None = None
    hub: str | None = None
    only: tuple[str, ...] = HUB_FILES
    files: tuple[File, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of all files, or None if one is not known."""
        known = [file.bytes for file in self.files]
        return None if not known or None in known else sum(filter(None, known))

    def conversion(self, file: File, folder: Path) -> str:
        """Return the command that converts a file of these weights, where they lie under `folder`."""
        into = f" -o {folder / self.into}" if self.into else ""
        layout = f" --layout {self.layout}" if self.layout == "diffusionclip" else ""
        return f"editkit convert {folder / self.name / file.name}{into}{layout} --licence '{self.licence}'"


@functools.cache
def entries(path: Path = FILE) -> Mapping[str, Entry]:
    """Return the entries of a registry file by name, in its order."""
    import yaml

    return {name: _entry(name, dict(about)) for name, about in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def select(names: Sequence[str], path: Path = FILE) -> list[tuple[Entry, list[File]]]:
    """Return the entries with the files that are meant: NAME is all of an entry, NAME/PATTERN some (`asyrp-deltas/smiling*`).

    Raises:
        UsageError: a name or a pattern that means nothing; the known ones are listed.
    """
    known = entries(path)
    found = []
    for text in names:
        name = max((name for name in known if f"{text}/".startswith(f"{name}/")), key=len, default=None)
        if name is None:
            raise UsageError(f"no weights named {text!r}.{suggestion(text, known)} Known are {', '.join(known)}")
        pattern = text.removeprefix(name).lstrip("/") or "*"
        files = [file for file in known[name].files if fnmatch.fnmatchcase(file.name, pattern)]
        if not files and pattern != "*":
            near = suggestion(pattern, [file.name for file in known[name].files])
            raise UsageError(f"{name} has no file {pattern!r}.{near} It has {', '.join(file.name for file in known[name].files)}")
        found.append((known[name], files))
    return found


def provider(folder: str) -> Entry | None:
    """Return the entry that a folder of weights (below the common one) comes from, or None."""
    return next((entry for entry in entries().values() if folder in (entry.name, entry.into)), None)


def original(folder: str) -> tuple[Entry, File] | None:
    """Return what a folder ENTRY/STEM (below the common one) is converted from, the file of that stem, or None."""
    name, _, stem = folder.rpartition("/")
    entry = entries().get(name)
    if entry is None or entry.layout is None or entry.into:
        return None
    return next(((entry, file) for file in entry.files if Path(file.name).stem == stem), None)


def digest(path: Path, kind: str = "sha256") -> str:
    """Return the hash of a file in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _entry(name: str, about: dict[str, Any]) -> Entry:
    files, sources, methods = about.pop("files", {}), about.pop("sources", []), about.pop("for")
    made = []
    for file, known in files.items():
        known = dict(known)
        urls = known.pop("sources", sources)
        filled = tuple(url.format(file=file, revision=about.get("revision")) for url in urls)
        made.append(File(file, sources=filled, **known))
    only = tuple(about.pop("only", HUB_FILES))
    return Entry(name, methods=tuple(methods), only=only, files=tuple(made), **about)
