"""Space on the disk: how much something will take there, how much is free, and writing what a run can do without."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

NAMED = 256  # bytes of a tensor's name, type and shape in a file's header, at most
NUMBER = 24  # of a number as text, at most
FILES = 32 * 1024  # of a folder, and of the last block of each file in it


def bytes_of(tree: Any) -> int:
    """Return how many bytes nested tensors, numbers and texts take as safetensors and JSON, rather too many than too few."""
    if isinstance(tree, Tensor):
        return tree.nbytes + NAMED
    if isinstance(tree, np.ndarray):
        return tree.size * NUMBER
    if isinstance(tree, Mapping):
        return sum(len(str(key)) + NUMBER + bytes_of(value) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return NUMBER + sum(map(bytes_of, tree))
    return 2 * len(tree) if isinstance(tree, str) else NUMBER


def lacking(folder: Path, need: int, what: str) -> str | None:
    """Return what is wrong if `need` bytes and a folder do not fit on the disk of `folder`; None if they do, or nobody knows."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    need += FILES
    return None if need <= free else f"no space left for {what}: {gib(need)} are needed, {gib(free)} are free in {folder}"


def gib(size: float) -> str:
    """Return bytes as GiB, or as MiB where those are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


@contextlib.contextmanager
def dispensable(path: Path) -> Iterator[None]:
    """Let a run go on where the disk refuses a file that it can do without, and warn of it."""
    try:
        yield
    except OSError as error:
        warnings.warn(f"cannot write {path} ({error.strerror or error}); training goes on without", stacklevel=3)
