"""Data sets of files, of which some may turn out to be broken."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import Dataset

from editkit.errors import UserError


class Readings(Dataset[dict[str, Any]]):
    """Base of data sets that read files; one that cannot be read is replaced by the next, with a warning that names it.

    A subclass has `__len__`, `key` and `read`.

    Attributes:
        skipped: keys of what could not be read so far.

    Raises:
        UserError: from indexing, when nothing can be read at all.
    """

    def __init__(self) -> None:
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__}.__len__")

    def key(self, index: int) -> str:
        """Return the key of an index from 0 to len - 1."""
        raise NotImplementedError(f"{type(self).__name__}.key")

    def read(self, index: int) -> dict[str, Any]:
        """Return the item of an index from 0 to len - 1, or raise UserError saying what is wrong with it."""
        raise NotImplementedError(f"{type(self).__name__}.read")

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self.key(place) in self.skipped:
                continue
            try:
                return self.read(place)
            except UserError as error:
                self.skipped.add(self.key(place))
                warnings.warn(f"left out, {len(self.skipped)} of {len(self)} so far: {error}", stacklevel=2)
        raise UserError(f"none of the {len(self)} pictures could be read: run `editkit data check` on the folder")
