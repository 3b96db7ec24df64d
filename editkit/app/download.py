"""One file from the network: resumed where it broke off, checked, and in its place only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from editkit.backbones.registry import File
from editkit.errors import UserError

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte
Report = Callable[[int, int | None], None]  # bytes so far, bytes in all if that is known


class _Failed(Exception):
    """A source that did not deliver, and why."""


def download(file: File, target: Path, report: Report = lambda done, total: None) -> None:
    """Fetch a file from the first of its sources that delivers what it should.

    What a source has delivered waits beside the target in a part of its own, so that the next call goes on from there.
    A file that differs from its hash or size is thrown away.

    Raises:
        UserError: none of the sources delivered; each one's reason is named.
    """
    reasons = []
    for url in file.sources:
        part = _part(target, url)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _complete(url, part, file.bytes, report)
            _settle(file, part, target)
        except _Failed as error:
            reasons.append(f"{urlsplit(url).hostname}: {error}")
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        else:
            for other in file.sources:
                _part(target, other).unlink(missing_ok=True)
            return
    raise UserError(f"{file.name} could not be fetched: {'; '.join(reasons)}")


def place(file: File, source: Path, target: Path) -> None:
    """Copy a file that a person fetched into its place, if it is the right one.

    Raises:
        UserError: it differs from its hash or size, or cannot be written.
    """
    part = _part(target, str(source))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)
        _settle(file, part, target)
    except _Failed as error:
        raise UserError(f"{source} is not {file.name}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot copy {source} to {target}: {error.strerror or error}") from error


@contextmanager
def bars() -> Iterator[Callable[[str], Report]]:
    """Show a bar on stderr, on a terminal alone, for each file that is named to what this yields."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as shown:

        def watch(name: str) -> Report:
            task = shown.add_task(name, total=None)
            return lambda done, total: shown.update(task, completed=done, total=total)

        yield watch


def _part(target: Path, url: str) -> Path:
    return target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")


def _settle(file: File, part: Path, target: Path) -> None:
    problem = file.problem(part)
    if problem is not None:
        part.unlink()
        raise _Failed(f"delivered another file, {problem}")
    with open(part, "rb") as written:
        os.fsync(written.fileno())
    part.replace(target)


def _complete(url: str, part: Path, expected: int | None, report: Report) -> None:
    """Ask again for the rest as long as that brings more."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        if before and before == expected:
            return
        total = _continue(url, part, before, report)
        after = part.stat().st_size
        if total is None or after >= total:
            return
        if after <= before and (after or not before):
            raise _Failed(f"broke off at {after:,} of {total:,} bytes; the same command continues")


def _continue(url: str, part: Path, before: int, report: Report) -> int | None:
    """Append what a source sends from byte `before` on; return the size that it states for the whole, if it does."""
    headers = {"User-Agent": "editkit"} | ({"Range": f"bytes={before}-"} if before else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            start = _start(answer)
            if start not in (0, before):
                raise _Failed(f"went on at byte {start:,} instead of {before:,}")
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length and length.isdecimal() else None
            with open(part, "ab" if start else "wb") as file:
                ended = _copy(answer, file.write, lambda done: report(start + done, total))
            if total is None and not ended:
                raise _Failed("broke off; the same command continues")
            return total
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
            return _beyond(error, part, before)
        raise _Failed(f"answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise _Failed(_reason(error)) from error


def _copy(answer: http.client.HTTPResponse, write: Callable[[bytes], object], report: Callable[[int], None]) -> bool:
    """Write what arrives; return whether the answer came to its own end."""
    done = 0
    while True:
        try:
            chunk = answer.read(CHUNK)
        except (OSError, http.client.HTTPException):  # the connection broke; what came is kept
            return False
        if not chunk:
            return True
        write(chunk)
        done += len(chunk)
        report(done)


def _beyond(error: urllib.error.HTTPError, part: Path, before: int) -> int:
    """The source has no byte after what is here: it is whole, or of another version and started anew."""
    found = re.search(r"\*/(\d+)", error.headers.get("Content-Range", ""))
    if found and int(found[1]) == before:
        return before
    part.write_bytes(b"")
    return int(found[1]) if found else 1


def _start(answer: http.client.HTTPResponse) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found and answer.status == http.HTTPStatus.PARTIAL_CONTENT else 0


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)
