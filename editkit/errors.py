"""Errors that a user can cause: shown as one line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what was wrong, what was seen and what to type instead.

    Attributes:
        exit_code: 2 for wrong usage, 1 for anything else.
    """

    exit_code = 1


class UsageError(UserError):
    """A wrong name, key, option or value on the command line or in a recipe."""

    exit_code = 2


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
