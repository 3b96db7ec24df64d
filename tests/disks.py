"""Disks that are really full or read-only, made of memory. Mounting needs root; without it the tests are skipped."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = 4096


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk of `size` bytes at a new folder."""
    folder.mkdir(parents=True)
    with _mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        yield folder


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Let nobody, not even root, write to a folder that is there; files that are open already may be written on."""
    with _mounted("--bind", str(folder), str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield folder


@contextlib.contextmanager
def _mounted(*arguments: str) -> Iterator[None]:
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        refusal = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        refusal = str(error)
    if refusal:
        pytest.skip(f"no disk can be mounted here, which takes root: {refusal}")
    try:
        yield
    finally:
        done = subprocess.run(["umount", arguments[-1]], capture_output=True, text=True)
        if done.returncode:
            subprocess.run(["umount", "--lazy", arguments[-1]], check=True)
            raise AssertionError(f"files are still open there: {done.stderr}")


def fill(disk: Path, leave: int = 0) -> Path:
    """Fill a disk up to `leave` bytes (whole pages) with a file; return the file."""
    filler = disk / "filler"
    about = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, about.f_bavail * about.f_frsize - leave)))
    return filler
