"""Checkpoints of a run: folders that are whole or absent.

    checkpoints/step-00000200/
        weights.safetensors   the trained part
        state.safetensors     tensors of the rest: average, optimisers, random generators
        state.json            the rest: counts, schedules, python generators, configuration
        manifest.json         sizes and hashes of the other three, written last

A folder is written under a temporary name beside the others, every file and the folder are flushed to disk, and one
rename makes it visible. Old ones go only after that. Reading takes the newest that verifies.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from editkit.errors import UserError
from editkit.training.space import bytes_of, lacking
from editkit.training.tree import pack, unpack

FORMAT = 1
_FILES = ("weights.safetensors", "state.safetensors", "state.json")
_DRAFT = ".draft-"
KEPT = "the previous ones are kept"


class CheckpointNotWritten(UserError):
    """The disk refused a checkpoint; the older ones are as they were."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: the trained weights by name, and everything else as nested state."""

    weights: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: Path, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `folder`/step-XXXXXXXX and prune all but the newest `keep`; return its path.

    Raises:
        CheckpointNotWritten: no space (asked for before anything is written), no permission or any other refusal of the
            disk; nothing older was touched.
    """
    target = folder / f"step-{step:08d}"
    if target.exists() and verify(target) is None:
        return target
    draft = folder / f"{_DRAFT}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_drafts(folder)
        problem = lacking(folder, bytes_of([weights, state]), "a checkpoint")
        if problem:
            raise CheckpointNotWritten(f"{problem}; {KEPT}: free some space")
        draft.mkdir()
        _write(draft, weights, state)
        if target.exists():  # broken, or it would have been returned above
            os.replace(target, folder / f"{_DRAFT}{uuid.uuid4().hex}")
        os.replace(draft, target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointNotWritten(_refusal(folder, error)) from error
    _remove_drafts(folder)
    for old in saved(folder)[max(keep, 2) :]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _write(draft: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    packed, tensors = pack(dict(state))
    save_file({name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}, draft / _FILES[0])
    save_file(tensors, draft / _FILES[1])
    (draft / _FILES[2]).write_text(json.dumps(packed))
    for name in _FILES:
        _flush(draft / name)
    manifest = {"format": FORMAT, "files": {name: _fingerprint(draft / name) for name in _FILES}}
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _flush(draft / "manifest.json")
    _flush(draft)


def load(path: Path) -> Snapshot:
    """Read one checkpoint folder.

    Raises:
        UserError: a file is missing, cut off or changed.
    """
    problem = verify(path)
    if problem:
        raise UserError(f"checkpoint {path} cannot be used: {problem}")
    state = unpack(json.loads((path / _FILES[2]).read_text()), _tensors(path / _FILES[1]))
    return Snapshot(_tensors(path / _FILES[0]), state)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return copies: what `load_file` gives lies in the file, whose space would stay taken after the checkpoint is pruned."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']} is not {FORMAT}, the one this version reads"
        for name in _FILES:
            if manifest["files"][name] != _fingerprint(path / name):
                return f"{name} is not what was written (size or hash differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint that verifies, or None; each one skipped is named in a warning."""
    for path in saved(folder):
        problem = verify(path)
        if problem is None:
            return path
        warnings.warn(f"skipped the checkpoint {path}: {problem}", stacklevel=2)
    return None


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first; what they hold is not looked at."""
    numbered = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(numbered, key=lambda path: int(path.name[5:]), reverse=True)


def _remove_drafts(folder: Path) -> None:
    for draft in folder.glob(f"{_DRAFT}*"):
        shutil.rmtree(draft, ignore_errors=True)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    with _descriptor(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _descriptor(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refusal(folder: Path, error: Exception) -> str:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "os error 28" in str(error):
        return f"no space left for a checkpoint under {folder}; {KEPT}: free some space"
    return f"cannot write a checkpoint under {folder} ({error}); {KEPT}"
