"""The figures of an evaluation as a table: for the terminal, and as Markdown between two marks of a README."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from editkit.app import markdown
from editkit.app.questions import QUESTIONS, Questions
from editkit.app.questions.figures import Figure

UNDEFINED = "-"
# Headings of what each edit costs, and those of the terminal's narrower table.
COST = {"s/edit": "s/edit", "calls/edit": "calls", "training s": "train s"}
NOTE = "Bold: above every baseline (the paired bootstrap 95 % interval of the difference excludes 0)."


def number(figure: Figure, value: float | None) -> str:
    """Return a figure with its decimals; "-" where it is undefined."""
    return UNDEFINED if value is None or math.isnan(value) else f"{value:.{figure.digits}f}"


def amount(value: float | None, digits: int = 0) -> str:
    """Return seconds or counts; "-" where there are none, two digits for small ones."""
    if value is None:
        return UNDEFINED
    return f"{value:.{max(digits, 0 if value >= 10 or value == round(value) else 2)}f}"


def questions_of(results: Mapping[str, Any]) -> Questions:
    """Return the questions that gave results."""
    return QUESTIONS[results["evaluate"]]


def headings(questions: Questions) -> list[str]:
    """Return the headings of `rows`."""
    figures = (questions.figures[name] for name in questions.shown)
    return ["edit", "method", *(f"{figure.label} {figure.unit}".strip() for figure in figures), *COST]


def rows(results: Mapping[str, Any]) -> Iterator[tuple[list[str], bool]]:
    """Yield the cells of each line and whether its method is above every baseline on the score, methods before baselines."""
    questions = questions_of(results)
    for edit, found in results["edits"].items():
        for method, entry in found["methods"].items():
            cost = [amount(entry["seconds"]), amount(entry["calls"]), amount(entry["training_seconds"])]
            above = is_above(found, method)
            for variant, measured in entry["variants"].items():
                name = method if variant == "raw" else f"{method} ({variant})"
                figures = [number(questions.figures[one], measured["figures"][one]["mean"]) for one in questions.shown]
                yield [edit, name, *figures, *cost], above and variant == "raw"


def is_above(found: Mapping[str, Any], method: str) -> bool:
    """Say whether a method is above every baseline on the score of an edit, and there are some."""
    differences = found["differences"].get(method, {})
    return bool(differences) and all(other["score"]["above"] for other in differences.values())


def terminal_table(results: Mapping[str, Any]) -> Table:
    """Return the main figures as a rich table of 80 columns; lines of a method that is above every baseline are bold."""
    questions = questions_of(results)
    title = f"{', '.join(results['methods'])} on {results['images']} {results['split']} {questions.subject}"
    table = Table(title=title, caption=NOTE, caption_justify="left", box=SIMPLE_HEAD, collapse_padding=True, show_edge=False)
    table.add_column("edit")
    short = [None, None, *(questions.figures[name].short for name in questions.shown), *COST.values()]
    chosen = [place for place, heading in enumerate(short) if heading]
    for place in chosen:
        table.add_column(short[place], justify="right", no_wrap=True)
    last = None
    for cells, above in rows(results):
        if cells[0] != last:
            last = cells[0]
            table.add_row(last, style="italic")
        table.add_row(f"  {cells[1]}", *(cells[place] for place in chosen), style="bold" if above else "")
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the same table as Markdown, with a note on what was measured."""
    questions = questions_of(results)
    heads, score = headings(questions), 2 + questions.shown.index("score")
    lines = []
    for cells, above in rows(results):
        if above:
            cells[1], cells[score] = f"**{cells[1]}**", f"**{cells[score]}**"
        lines.append(cells)
    measured = f"{results['images']} {questions.subject} of the {results['split']} split, seed {results['seed']}. {NOTE}"
    return f"{markdown.table(heads, lines, texts=2)}\n\n{measured}\n"
