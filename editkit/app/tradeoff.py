"""The trade-off that one setting makes, as a curve: how far an edit goes against how much stays, one point a value."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from editkit.app.tables import questions_of
from editkit.errors import UserError

SIDE, LEFT, BOTTOM, TOP, RIGHT = 360, 64, 48, 24, 24  # pixels of a panel and its margins
CURVE, POINT = "#1b6ca8", "#8a8a8a"
TICKS = 4

Point = tuple[str, float, float]


def write(output: Path, results: Mapping[str, Any]) -> list[Path]:
    """Write tradeoff.csv, all figures of every value, edit by edit and their mean, and tradeoff.svg, a panel for each pair.

    Raises:
        UserError: one cannot be written.
    """
    table, plot = output / "tradeoff.csv", output / "tradeoff.svg"
    try:
        with open(table, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(_lines(results))
        plot.write_text(svg(results), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}") from error
    return [table, plot]


def svg(results: Mapping[str, Any]) -> str:
    """Return one panel for each pair of figures that the questions hold against each other: values a curve, baselines dots."""
    questions, figures = questions_of(results), means(results)
    panels = []
    for number, (x, y) in enumerate(questions.tradeoffs):
        defined = [(name, own[x], own[y]) for name, own in figures.items() if own[x] is not None and own[y] is not None]
        curve = [point for point in defined if point[0] in results["methods"]]
        others = [point for point in defined if point[0] not in results["methods"]]
        labels = (questions.figures[x].label, questions.figures[y].label)
        panels.append(f'<g transform="translate({number * SIDE} 0)">{"".join(_panel(curve, others, labels))}</g>')
    style = "font: 11px sans-serif; background: white"
    size = f"{SIDE * len(panels)} {SIDE}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" style="{style}">\n' + "\n".join(panels) + "\n</svg>\n"


def means(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return each entrant's figures, the mean over edits of those where they are defined; None where they are in none."""
    found = {}
    for name in dict.fromkeys(name for entry in results["edits"].values() for name in entry["methods"]):
        entries = [entry["methods"][name] for entry in results["edits"].values() if name in entry["methods"]]
        values = [_figures(entry) for entry in entries]
        found[name] = {figure: _mean([own[figure] for own in values]) for figure in questions_of(results).figures}
    return found


def _lines(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    names = list(questions_of(results).figures)
    yield ["edit", "method", *names]
    for edit, entry in results["edits"].items():
        for method, found in entry["methods"].items():
            yield [edit, method, *(_figures(found)[name] for name in names)]
    for method, own in means(results).items():
        yield ["mean", method, *(own[name] for name in names)]


def _figures(entry: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: figure["mean"] for name, figure in entry["variants"]["raw"]["figures"].items()}


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _panel(curve: Sequence[Point], others: Sequence[Point], labels: tuple[str, str]) -> Iterator[str]:
    (low_x, high_x), (low_y, high_y) = (_range([point[axis] for point in (*curve, *others)]) for axis in (1, 2))
    across = lambda value: LEFT + (SIDE - LEFT - RIGHT) * (value - low_x) / (high_x - low_x)  # noqa: E731
    down = lambda value: SIDE - BOTTOM - (SIDE - BOTTOM - TOP) * (value - low_y) / (high_y - low_y)  # noqa: E731
    for k in range(TICKS + 1):
        x, y = low_x + (high_x - low_x) * k / TICKS, low_y + (high_y - low_y) * k / TICKS
        yield f'<line x1="{LEFT}" x2="{SIDE - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.2f}</text>'
        yield f'<text x="{across(x):.1f}" y="{SIDE - BOTTOM + 16}" text-anchor="middle">{x:.2f}</text>'
    yield f'<text x="{(LEFT + SIDE - RIGHT) / 2}" y="{SIDE - 8}" text-anchor="middle">{escape(labels[0])}</text>'
    yield f'<text transform="rotate(-90)" x="{-(TOP + SIDE - BOTTOM) / 2}" y="14" text-anchor="middle">{escape(labels[1])}</text>'
    path = " ".join(f"{across(x):.1f},{down(y):.1f}" for _, x, y in curve)
    yield f'<polyline points="{path}" fill="none" stroke="{CURVE}" stroke-width="2"/>'
    for colour, points in ((CURVE, curve), (POINT, others)):
        for name, x, y in points:
            short = escape(name.rpartition("=")[2])
            yield f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="4" fill="{colour}"><title>{escape(name)}</title></circle>'
            yield f'<text x="{across(x) + 6:.1f}" y="{down(y) - 6:.1f}" fill="{colour}">{short}</text>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return where an axis begins and ends: a tenth beyond the values on both sides."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.1 * (high - low) or 0.1
    return low - room, high + room
