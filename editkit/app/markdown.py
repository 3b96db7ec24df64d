"""Text that a command keeps up to date inside a Markdown file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from editkit.errors import UserError


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table; the first columns are texts, all others numbers."""
    rules = "|" + "---|" * texts + "---:|" * (len(headings) - texts)
    lines = ["| " + " | ".join(cells) + " |" for cells in (headings, *rows)]
    return "\n".join([lines[0], rules, *lines[1:]])


def insert(path: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->` in a file.

    Raises:
        UserError: no such file, or not both marks in it.
    """
    head, first, _, last, tail = _parts(path, mark)
    path.write_text(f"{head}{first}\n{text.strip()}\n{last}{tail}", encoding="utf-8")


def check_marks(path: Path, mark: str) -> None:
    """Refuse a file that `insert` would refuse, before the work whose result goes into it.

    Raises:
        UserError: no such file, or not both marks in it.
    """
    _parts(path, mark)


def _parts(path: Path, mark: str) -> tuple[str, str, str, str, str]:
    """Return what stands before the first mark, that mark, what stands between, the last mark, and the rest."""
    first, last = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    head, opened, rest = content.partition(first)
    inside, closed, tail = rest.partition(last)
    if not opened or not closed:
        raise UserError(f"{path} has no lines {first} and {last} to put the table between: add them where it should stand")
    return head, first, inside, last, tail
