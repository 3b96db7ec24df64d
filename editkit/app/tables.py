"""The figures of an evaluation as a table: for the terminal, and as Markdown between two marks of a README."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from editkit.app.judges import FIGURES

SHOWN = ("success", "preservation", "score", "psnr_inside", "psnr_outside", "clip_direction", "identity")
UNDEFINED = "-"
# Headings of the terminal's narrower table.
SHORT = {
    "success": "success",
    "preservation": "kept",
    "score": "score",
    "PSNR in dB": "in dB",
    "PSNR out dB": "out dB",
    "s/edit": "s/edit",
    "calls/edit": "calls",
    "training s": "train s",
}
NOTE = "Bold: above every baseline (the paired bootstrap 95 % interval of the difference excludes 0)."


def number(name: str, value: float | None) -> str:
    """Return a figure of `FIGURES` with its decimals; "-" where it is undefined."""
    return UNDEFINED if value is None or math.isnan(value) else f"{value:.{FIGURES[name].digits}f}"


def amount(value: float | None, digits: int = 0) -> str:
    """Return seconds or counts; "-" where there are none, two digits for small ones."""
    if value is None:
        return UNDEFINED
    return f"{value:.{max(digits, 0 if value >= 10 or value == round(value) else 2)}f}"


def headings() -> list[str]:
    """Return the headings of `rows`."""
    labels = [f"{FIGURES[name].label} {FIGURES[name].unit}".strip() for name in SHOWN]
    return ["edit", "method", *labels, "s/edit", "calls/edit", "training s"]


def rows(results: Mapping[str, Any]) -> Iterator[tuple[list[str], bool]]:
    """Yield the cells of each line and whether its method is above every baseline on the score, methods before baselines."""
    for edit, found in results["edits"].items():
        for method, entry in found["methods"].items():
            cost = [amount(entry["seconds"]), amount(entry["calls"]), amount(entry["training_seconds"])]
            differences = found["differences"].get(method, {})
            above = bool(differences) and all(other["score"]["above"] for other in differences.values())
            for variant, measured in entry["variants"].items():
                name = method if variant == "raw" else f"{method} ({variant})"
                figures = [number(figure, measured["figures"][figure]["mean"]) for figure in SHOWN]
                yield [edit, name, *figures, *cost], above and variant == "raw"


def terminal_table(results: Mapping[str, Any]) -> Table:
    """Return the main figures as a rich table of 80 columns; lines of a method that is above every baseline are bold."""
    title = f"{', '.join(results['methods'])} on {results['images']} {results['split']} faces"
    table = Table(title=title, caption=NOTE, caption_justify="left", box=SIMPLE_HEAD, collapse_padding=True, show_edge=False)
    table.add_column("edit")
    for heading in SHORT.values():
        table.add_column(heading, justify="right", no_wrap=True)
    chosen = [headings().index(name) for name in SHORT]
    last = None
    for cells, above in rows(results):
        if cells[0] != last:
            last = cells[0]
            table.add_row(last, style="italic")
        table.add_row(f"  {cells[1]}", *(cells[place] for place in chosen), style="bold" if above else "")
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the same table as Markdown, with a note on what was measured."""
    lines = ["| " + " | ".join(headings()) + " |", "|---|---|" + "---:|" * (len(headings()) - 2)]
    for cells, above in rows(results):
        if above:
            cells[1], cells[4] = f"**{cells[1]}**", f"**{cells[4]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", f"{results['images']} faces of the {results['split']} split, seed {results['seed']}. {NOTE}", ""]
    )
