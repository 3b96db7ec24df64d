"""An evaluation as one HTML file that needs nothing else: pictures inside, plots as SVG, before/after sliders."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from torch import Tensor

from editkit.app.tables import NOTE, amount, headings, number, questions_of, rows
from editkit.data.fit import to_pil

PLOT_WIDTH, PLOT_HEIGHT, LEFT, BOTTOM, TOP, LINE = 640, 280, 56, 40, 12, 13


@dataclass(frozen=True)
class Example:
    """One picture in the gallery of a report.

    Attributes:
        title: which picture it is.
        before: the source (3, H, W) in [-1, 1].
        edited: what each method made of it; each shares a slider with the source.
        others: further pictures by what they are, such as the truth.
        figures: figures of each edited picture, by the names of the questions' figures.
    """

    title: str
    before: Tensor
    edited: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    figures: Mapping[str, Mapping[str, float]]


def report(results: Mapping[str, Any], examples: Mapping[str, Sequence[Example]]) -> str:
    """Return the page.

    Args:
        results: what metrics.json holds.
        examples: the gallery of each edit.
    """
    names, questions = _entrants(results), questions_of(results)
    return page(
        "report.html",
        results=results,
        questions=questions,
        figures=questions.figures,
        number=lambda name, value: number(questions.figures[name], value),
        note=NOTE,
        examples=examples,
        headings=headings(questions),
        rows=list(rows(results)),
        entrants=names,
        bars=bars(results, names),
        points=points(results, names),
        plot={"width": PLOT_WIDTH, "height": PLOT_HEIGHT, "left": LEFT, "bottom": PLOT_HEIGHT - BOTTOM, "top": TOP},
        factors=_factors(results),
    )


def page(name: str, **values: Any) -> str:
    """Return a template of this folder, filled; every value is escaped."""
    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data": data_uri, "amount": amount}
    return environment.get_template(name).render(**values)


def data_uri(image: Tensor) -> str:
    """Return an image (3, H, W) in [-1, 1] as a PNG inside a URI."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def bars(results: Mapping[str, Any], entrants: Sequence[str]) -> dict[str, Any]:
    """Return the score of every entrant for every edit as bars with whiskers, in pixels of the plot."""
    edits, score = results["edits"], questions_of(results).figures["score"]
    group = (PLOT_WIDTH - LEFT) / len(edits)
    width = min(34.0, group * 0.8 / len(entrants))
    found = []
    for place, (edit, entry) in enumerate(edits.items()):
        x = LEFT + group * (place + 0.5) - width * len(entry["methods"]) / 2
        for name, method in entry["methods"].items():
            interval = method["variants"]["raw"]["score_interval"]
            top, whisker = _y(interval["mean"]), (_y(interval["high"]), _y(interval["low"]))
            about = f"{edit}, {name}: score {number(score, interval['mean'])}"
            shape = {"x": x, "y": top, "width": width - 2, "height": _y(0) - top, "whisker": whisker}
            found.append({**shape, "colour": entrants.index(name), "about": about})
            x += width
    ticks = [{"y": _y(k / 5), "text": f"{k / 5:.1f}"} for k in range(6)]
    return {
        "bars": found,
        "ticks": ticks,
        "names": [{"x": LEFT + group * (k + 0.5), "text": edit} for k, edit in enumerate(edits)],
    }


def points(results: Mapping[str, Any], entrants: Sequence[str]) -> dict[str, Any]:
    """Return success against preservation, one point an entrant and edit, in pixels of the plot; those of methods have labels."""
    found, names = [], ("success", "preservation")
    figures = [questions_of(results).figures[name] for name in names]
    for edit, entry in results["edits"].items():
        for name, method in entry["methods"].items():
            success, kept = (method["variants"]["raw"]["figures"][figure]["mean"] for figure in names)
            about = f"{edit}, {name}: success {number(figures[0], success)}, preservation {number(figures[1], kept)}"
            found.append({"x": _x(success), "kept": kept, "colour": entrants.index(name), "about": about, "edit": edit})
    floor = math.floor(10 * min([0.8, *(point["kept"] for point in found)])) / 10
    above = -math.inf
    for point in sorted(found, key=lambda point: -point["kept"]):
        point["y"], point["label_y"] = _y((point["kept"] - floor) / (1 - floor)), None
        if point["colour"] < len(results["methods"]):
            above = point["label_y"] = max(point["y"] + 4, above + LINE)
    ticks = [{"y": _y(k / 4), "text": f"{floor + (1 - floor) * k / 4:.2f}"} for k in range(5)]
    return {"points": found, "ticks": ticks, "names": [{"x": _x(k / 5), "text": f"{k / 5:.1f}"} for k in range(6)]}


def _template(name: str) -> str:
    return resources.files("editkit.app").joinpath(name).read_text(encoding="utf-8")


def _x(share: float) -> float:
    return LEFT + 20 + share * (PLOT_WIDTH - LEFT - 60)


def _y(share: float) -> float:
    return PLOT_HEIGHT - BOTTOM - share * (PLOT_HEIGHT - BOTTOM - TOP)


def _entrants(results: Mapping[str, Any]) -> list[str]:
    """Return the methods and then all baselines: their order decides their colours."""
    return list(dict.fromkeys([*results["methods"], *(name for entry in results["edits"].values() for name in entry["methods"])]))


def _factors(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return for each edit the factors that are charged, in the oracle's order."""
    first = results["methods"][0]
    return {edit: list(entry["methods"][first]["variants"]["raw"]["kept"]) for edit, entry in results["edits"].items()}
