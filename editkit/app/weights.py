"""What `editkit weights` does: list the published weights that editkit knows, fetch them when asked, verify them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from editkit.app.download import Report, download, place
from editkit.backbones.registry import FILE, Entry, File, digest, entries, select
from editkit.errors import UsageError, UserError

FOLDER_VARIABLE, OFFLINE_VARIABLE = "EDITKIT_WEIGHTS", "EDITKIT_OFFLINE"
Say = Callable[[str], object]
Watch = Callable[[str], Report]  # the name of a file that is about to be fetched -> what is told of its bytes


def folder_of(given: Path | None) -> Path:
    """Return where weights lie: what was given, else $EDITKIT_WEIGHTS, else weights/ here."""
    return given or Path(os.environ.get(FOLDER_VARIABLE) or "weights")


def table(folder: Path, registry: Path = FILE) -> str:
    """Return one line an entry for a terminal: name, size, whether it is here, whether a hash is known, licence, methods."""
    rows = [("name", "size", "here", "pinned", "licence", "for", "what")]
    for entry in entries(registry).values():
        here = sum((folder / entry.name / file.name).is_file() for file in entry.files)
        whole = len(entry.files)
        if entry.hub:
            here, whole = int(_hub_files(folder, entry) != []), 1
        pins = sum(file.pinned for file in entry.files)
        rows.append(
            (
                entry.name,
                _megabytes(entry.size),
                "yes" if here == whole else f"{here} of {whole}" if here else "no",
                "yes" if pins and pins == whole else f"{pins} of {whole}" if pins else "no",
                entry.licence,
                ", ".join(entry.methods) or ("metrics" if entry.layout else "any"),
                entry.summary,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[6]]).rstrip() for row in rows
    )


def fetch(
    names: Sequence[str],
    folder: Path,
    say: Say,
    *,
    offline: Path | None = None,
    watch: Watch = lambda name: lambda done, total: None,
    registry: Path = FILE,
) -> int:
    """Bring weights into FOLDER/NAME/ and say how to go on; return 0 if all are there, else 1.

    Args:
        names: NAME or NAME/PATTERN, see `registry.select`.
        folder: where weights lie.
        say: shows a line.
        offline: folder of files that a person fetched; with it nothing is asked of the network. None = $EDITKIT_OFFLINE.
        watch: shows the progress of a file.
        registry: the registry file.

    Raises:
        UsageError: no name, or an unknown one.
    """
    offline = offline or (Path(os.environ[OFFLINE_VARIABLE]) if os.environ.get(OFFLINE_VARIABLE) else None)
    if not names:
        raise UsageError(f"weights fetch needs a NAME: choose from {', '.join(entries(registry))}")
    failed = 0
    for entry, files in select(names, registry):
        problems: list[str] = []
        if entry.hub:
            problems = _attempt(lambda entry=entry: _from_hub(entry, folder, offline))
        for file in files:
            problems += _attempt(lambda entry=entry, file=file: _bring(entry, file, folder, offline, say, watch))
        for problem in problems:
            say(problem)
        if not problems:
            say(_next_step(entry, files, folder))
        failed += len(problems)
    return int(failed > 0)


def verify(names: Sequence[str], folder: Path, say: Say, registry: Path = FILE) -> int:
    """Compare files with what is known of them; return 1 if one differs, or one that was named is missing, else 0.

    A file without a published hash is "unpinned": its SHA-256 is shown, for a person to compare.

    Raises:
        UsageError: an unknown name.
    """
    wrong = seen = 0
    for entry, files in select(names or list(entries(registry)), registry):
        for path in _hub_files(folder, entry) if entry.hub else ():
            seen += 1
            say(f"unpinned  {path}  sha256 {digest(path)}")
        for file in files:
            path = folder / entry.name / file.name
            if not path.is_file():
                if names:
                    wrong += 1
                    say(f"missing   {path}  get it by: editkit weights fetch {entry.name}/{file.name}")
                continue
            seen += 1
            problem = file.problem(path)
            wrong += problem is not None
            say(f"WRONG     {path}  {problem}" if problem else _verified(file, path))
    if not seen and not names:
        say(f"no known weights in {folder}")
    return int(wrong > 0)


def _verified(file: File, path: Path) -> str:
    return f"ok        {path}" if file.pinned else f"unpinned  {path}  sha256 {digest(path)}"


def _attempt(step: Callable[[], None]) -> list[str]:
    try:
        step()
    except UserError as error:
        return [str(error)]
    return []


def _bring(entry: Entry, file: File, folder: Path, offline: Path | None, say: Say, watch: Watch) -> None:
    target = folder / entry.name / file.name
    again = f"editkit weights fetch {entry.name}/{file.name} --offline DIR"
    by_hand = f"by hand: download it from {entry.page} into a folder DIR, then {again}"
    by_hand += f" ({entry.note})" if entry.note else ""
    if target.is_file():
        problem = file.problem(target)
        if problem is not None:
            raise UserError(f"{target} is another file, {problem}: remove it and fetch again")
        return
    if offline is not None:
        places = [offline / entry.name / file.name, offline / file.name]
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise UserError(f"{file.name} is not in {offline} (--offline): put it there from {entry.page}")
        place(file, found, target)
    elif not file.sources:
        raise UserError(f"{file.name} can only be fetched {by_hand}")
    else:
        try:
            download(file, target, watch(file.name))
        except UserError as error:
            raise UserError(f"{error}; {by_hand}") from error
    if not file.pinned:
        say(f"{file.name} is unpinned: nobody published its hash; it is sha256 {digest(target)}")


def _from_hub(entry: Entry, folder: Path, offline: Path | None) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    assert entry.hub is not None
    target = folder / entry.name
    if offline is not None:
        raise UserError(f"{entry.name} is a folder of the hub: put it into {target} by hand; --offline takes single files")
    try:
        snapshot_download(entry.hub, revision=entry.revision, local_dir=target, allow_patterns=list(entry.only))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{entry.name} could not be fetched: {reason}; by hand: from {entry.page} into {target}") from error


def _hub_files(folder: Path, entry: Entry) -> list[Path]:
    return sorted((folder / entry.name).rglob("*.safetensors"))


def _next_step(entry: Entry, files: Sequence[File], folder: Path) -> str:
    if entry.layout is None:
        return f"{folder / entry.name} is ready: backbone.path={folder / entry.name}"
    return f"next: {entry.conversion(files[0], folder)}"


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.1f} MB"
