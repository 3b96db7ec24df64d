"""A process that kills itself at a chosen moment: after so many bytes of a checkpoint's files, or at a call to the disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from safetensors.torch import save

from editkit.training import checkpoint

# What is done on the disk, and how often at most before the kill; of "write" these are bytes, over two checkpoints and more.
MOST = {"write": 90_000, "fsync": 20, "replace": 4, "remove": 12, "read": 12}
KINDS = ("write", "fsync", "write", "replace", "write", "remove", "write", "read")


@dataclass
class Moment:
    """After `left` more of what `kind` says (bytes for "write") the process is gone."""

    kind: str
    left: int

    def comes(self, kind: str) -> None:
        """Count one call, and die of it if it is the one."""
        if kind == self.kind:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def written(self, path: Path, data: bytes) -> None:
        """Write a file as far as the process lives."""
        if self.kind != "write":
            path.write_bytes(data)
            return
        with path.open("wb", buffering=0) as file:
            file.write(data[: self.left])
            if self.left < len(data):
                os.kill(os.getpid(), signal.SIGKILL)
        self.left -= len(data)

    def install(self) -> None:
        """Take the place of what writes checkpoints, in this process for good."""
        checkpoint.save_file = lambda tensors, path: self.written(path, save(tensors))
        Path.write_text = lambda path, text: self.written(path, text.encode())  # type: ignore[assignment, method-assign]
        os.fsync = self._counted("fsync", os.fsync)
        os.replace = self._counted("replace", os.replace)
        shutil.rmtree = self._removed  # type: ignore[assignment]

    def _counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.comes(kind)
            return function(*arguments)

        return call

    def _removed(self, folder: Path, ignore_errors: bool) -> None:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            self.comes("remove")
            path.unlink()
        self.comes("remove")
        if folder.is_dir():
            folder.rmdir()


def moments(count: int, seed: int = 0) -> Iterator[Moment]:
    """Return random moments of every kind in turn."""
    chance = random.Random(seed)
    return (Moment(kind, chance.randrange(MOST[kind])) for kind in islice(cycle(KINDS), count))
