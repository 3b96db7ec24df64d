"""Parquet files as a list of rows, read by row group when a row of it is asked for."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from editkit.data.photo import Photo, photo_from_bytes, read_photo
from editkit.errors import UserError

KEPT = 2  # row groups in memory; the next row is most often of the last one


class Table:
    """The rows of some parquet files, in the files' order; nothing is kept open, so that processes may share it.

    Args:
        paths: the files; one that is broken is left out.
        needed: columns that every file must have.
        wanted: columns that are read too where a file has them.

    Attributes:
        groups: the number of rows of each row group.
        bad: what is wrong with the files that are left out.

    Raises:
        UserError: pyarrow is not installed, a column is missing, or no file can be read.
    """

    def __init__(self, paths: Sequence[Path], needed: Sequence[str], wanted: Sequence[str] = ()):
        parquet = pyarrow_parquet()
        self._places: list[tuple[Path, int, list[str]]] = []
        self._firsts: dict[Path, int] = {}
        self.groups: list[int] = []
        self.bad: list[str] = []
        for path in paths:
            try:
                with parquet.ParquetFile(path) as file:
                    names = file.schema_arrow.names
                    rows = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
            except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
                self.bad.append(f"{path} cannot be read ({str(error).splitlines()[0]}): fetch it again")
                continue
            for name in needed:
                if name not in names:
                    raise UserError(f"{path} has no column {name}; its columns are: {', '.join(names)}")
            columns = [name for name in (*needed, *wanted) if name in names]
            self._places += [(path, k, columns) for k in range(len(rows))]
            self._firsts[path] = sum(self.groups)
            self.groups += rows
        if not self._places:
            raise UserError(self.bad[0] if self.bad else "there are no rows in the parquet files")
        self._ends = list(accumulate(self.groups))
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def name(self, index: int) -> str:
        """Name a row: its file and its place there."""
        path = self._places[bisect.bisect_right(self._ends, index)][0]
        return f"{path.name}/{index - self._firsts[path]:06d}"

    def blocks(self, rows: range) -> list[int]:
        """Return how many of consecutive rows lie in each row group."""
        groups = zip(self._ends, self.groups, strict=True)
        counts = (min(end, rows.stop) - max(end - length, rows.start) for end, length in groups)
        return [count for count in counts if count > 0]

    def row(self, index: int) -> dict[str, Any]:
        """Return a row as a dict; wanted columns that the file lacks are missing.

        Raises:
            UserError: its row group is broken.
        """
        group = bisect.bisect_right(self._ends, index)
        return self._group(group).slice(index - (self._ends[group] - self.groups[group]), 1).to_pylist()[0]

    def _group(self, group: int) -> Any:
        kept = self._kept.get(group)
        if kept is not None:
            return kept
        path, number, columns = self._places[group]
        try:
            with pyarrow_parquet().ParquetFile(path) as file:
                kept = file.read_row_group(number, columns=columns, use_threads=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}, row group {number} cannot be read: {str(error).splitlines()[0]}") from error
        self._kept = {**dict(list(self._kept.items())[1 - KEPT :]), group: kept}
        return kept


def picture(cell: Any, root: Path, name: str) -> Photo:
    """Return the picture in a cell: bytes, or the hub's {"bytes", "path"}.

    Raises:
        UserError: no picture, or one that cannot be read.
    """
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(data, bytes):
        return photo_from_bytes(data, name)
    if isinstance(path, str):
        return read_photo(root / path)
    raise UserError(f"{name} is empty")


def pyarrow_parquet() -> Any:
    """Return the module pyarrow.parquet. Raises UserError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError("parquet files are read with pyarrow, which is not installed: pip install 'editkit[parquet]'") from error
    return parquet
