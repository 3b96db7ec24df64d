"""The files of an evaluation: figures, rows per image, a table, sheets of pictures and the report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from editkit.app.grid import save_grid
from editkit.app.report import Example, report
from editkit.app.tables import markdown_table
from editkit.app.trial import Trial
from editkit.data.files import write_atomic
from editkit.errors import UserError

SHOWN = 12  # pictures in sheets and in the report


def write(output: Path, results: Mapping[str, Any], trials: Sequence[Trial]) -> list[Path]:
    """Write all files of an evaluation, each whole, and return their paths; metrics.json is last, when all is there.

    Raises:
        UserError: one cannot be written.
    """
    texts = {
        "table.md": markdown_table(results),
        "report.html": report(results, {trial.cases.edit.name: examples(trial) for trial in trials}),
    }
    csv.writer(lines := io.StringIO(newline="")).writerows(_lines(trials))
    texts["images.csv"] = lines.getvalue()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}") from error
    for name, text in texts.items():
        write_atomic(output / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    paths = [output / name for name in ("metrics.json", *texts)]
    for trial in trials:
        rows = dict(_rows(trial))
        sheet = output / f"sheet-{trial.cases.edit.name.replace(' ', '-')}.png"
        paths.append(save_grid(sheet, list(rows.values()), labels=list(rows)))
    write_json(output / "metrics.json", results)
    return paths


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Write strict JSON, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def examples(trial: Trial) -> list[Example]:
    """Return the first pictures of a trial for the gallery of the report."""
    rows = dict(_rows(trial))
    source, scores = rows.pop("source"), {name: trial.scores[name]["raw"].figures for name in trial.methods}
    found = []
    for i in range(min(SHOWN, len(trial.cases))):
        edited = {name: rows[name][i] for name in trial.methods}
        others = {name: row[i] for name, row in rows.items() if name not in trial.methods}
        figures = {method: {name: values[i].item() for name, values in own.items()} for method, own in scores.items()}
        found.append(Example(trial.cases.keys[i], source[i], edited, others, figures))
    return found


def _lines(trials: Sequence[Trial]) -> Iterator[list[Any]]:
    names = trials[0].questions.figures
    yield ["edit", "method", "variant", "image", *names]
    for trial in trials:
        for name, kinds in trial.scores.items():
            for kind, found in kinds.items():
                for i, key in enumerate(trial.cases.keys):
                    figures = [f"{found.figures[figure][i].item():.6g}" for figure in names]
                    yield [trial.cases.edit.name, name, kind, key, *figures]


def _rows(trial: Trial) -> Iterator[tuple[str, Tensor]]:
    """Yield the rows of a sheet with their labels: the first ones, as they come."""
    yield "source", trial.cases.images[:SHOWN]
    for name in dict.fromkeys(("reconstruction", *trial.methods)):
        if name in trial.outcomes:
            yield name, trial.outcomes[name].variants["raw"][:SHOWN]
    yield "truth", trial.cases.truth[:SHOWN]
