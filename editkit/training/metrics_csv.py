"""A run's figures in one CSV file that a resumed run continues."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from editkit.engine.atomic import write_bytes


class CsvLog(Logger):
    """Writes `save_dir`/metrics.csv, one row per logged step; new columns widen the file.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """Unused: a run directory holds one run."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run directory's config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row; after a write that failed the file is read again, and mended."""
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in metrics.items()}}
        known, self._columns = self._columns, None
        if known is not None and row.keys() <= set(known):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, known).writerow(row)
            self._columns = known
            return
        columns, rows = self.read()
        self._write([*columns, *(name for name in row if name not in columns)], [*rows, row])

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, which a run that resumes there writes again."""
        columns, rows = self.read()
        if columns:
            self._write(columns, [row for row in rows if int(row["step"]) <= step])

    def read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return the columns and the rows; a last line that a crash cut off is left out."""
        if not self.path.exists():
            return [], []
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values() and (row["step"] or "").isdigit()]
            return list(reader.fieldnames or []), rows

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path, text.getvalue().encode())
        self._columns = columns
