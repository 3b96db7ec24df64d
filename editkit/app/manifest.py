"""What a folder of results already holds, so that the same command again goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editkit.data.files import provenance
from editkit.errors import UserError


class Manifest:
    """The list of finished pictures in a folder of results, one JSON object a line, appended and flushed one by one.

    A line that a killed process left unfinished counts as not written. Shares of a folder, which may be edited on several
    computers at once, append to a list each and read all of them.

    Args:
        shard: `I/N` for a share.

    Raises:
        UserError: the folder cannot be read.
    """

    def __init__(self, folder: Path, shard: str | None = None) -> None:
        self.path = folder / list_name(shard)
        self._done: dict[str, str | None] = {}
        self._cut_off = False
        for path in sorted(folder.glob("editkit*.jsonl")):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            if path == self.path:
                self._cut_off = bool(data) and not data.endswith(b"\n")
            for key, job in finished(data).items():  # where two lists differ, only the results can tell which came last
                self._done[key] = job if self._done.get(key, job) == job else None

    def done(self, key: str, job: str, outputs: Sequence[Path]) -> bool:
        """Say whether a picture was finished with these very inputs and settings, and all its results still stand.

        Results that are written but not listed (the process was killed in between) say so themselves, and are listed now.
        """
        if not all(path.is_file() for path in outputs):
            return False
        if self._done.get(key) == job:
            return True
        made = all((provenance(path) or {}).get("job") == job for path in outputs)
        if made:
            self.add(key, job, outputs)
        return made

    def add(self, key: str, job: str, outputs: Sequence[Path]) -> None:
        """List a finished picture."""
        self._append({"key": key, "job": job, "status": "done", "outputs": [path.name for path in outputs]})

    def fail(self, key: str, reason: str) -> None:
        """List a picture that could not be edited; the next run tries it again."""
        self._append({"key": key, "status": "failed", "reason": reason})

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(("\n" if self._cut_off else "") + json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        self._cut_off = False


def list_name(shard: str | None) -> str:
    """Return the name of the list of a folder, or of a share of it."""
    return "editkit.jsonl" if shard is None else f"editkit.{shard.replace('/', '-of-')}.jsonl"


def fingerprint(settings: Mapping[str, Any], files: Sequence[Path]) -> str:
    """Return a hash of settings and of the content of files: equal exactly when a job would give the same results.

    Raises:
        UserError: a file cannot be read.
    """
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in files:
        try:
            with open(path, "rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return sha.hexdigest()[:16]


def finished(data: bytes) -> dict[str, str]:
    """Return the finished pictures that a list names, by key, each with the fingerprint of its last job."""
    done = (entry for entry in map(_entry, data.splitlines()) if entry.get("status") == "done")
    return {str(entry.get("key")): str(entry.get("job")) for entry in done}


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
