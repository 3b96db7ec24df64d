"""How each method of a family stands against its baselines, as one table of methods that are asked different things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from editkit.app import markdown
from editkit.app.questions import QUESTIONS
from editkit.app.tables import NOTE, UNDEFINED, amount, is_above, number

FIGURES = ("success", "preservation", "score", "psnr", "identity")
HEADINGS = (
    *("method", "task", "success", "preservation", "score", "best baseline", "PSNR dB", "identity"),
    *("training s", "calls/edit", "s/edit"),
)
SCORE, TEXTS = HEADINGS.index("score"), 2
NARROW = ("method", "task", "score", "best baseline", "PSNR dB", "training s", "s/edit")  # columns for a terminal
MEANT = "PSNR is to the exact answer, over the whole picture; identity the cosine with the source; seconds include the inversion."


def standing(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return one method's standing, of the results of an evaluation of that method by one edit.

    `figures` has the means of `FIGURES`, None where one is undefined or not measured; `best_baseline` the baseline of the
    highest score, None without baselines; `not_above` those that the method's score is not above.
    """
    (name,), ((edit, found),) = results["methods"], results["edits"].items()
    entry, rivals = found["methods"][name], found["differences"].get(name, {})
    scores = {rival: _mean(found["methods"][rival], "score") for rival in rivals}
    best = max(scores, key=lambda rival: scores[rival] or 0, default=None)
    return {
        "evaluate": results["evaluate"],
        "edit": edit,
        "figures": {figure: _mean(entry, figure) for figure in FIGURES},
        "above": is_above(found, name),
        "best_baseline": None if best is None else {"name": best, "score": scores[best]},
        "not_above": [rival for rival, difference in rivals.items() if not difference["score"]["above"]],
        **{cost: entry[cost] for cost in ("training_seconds", "calls", "seconds")},
        "device": results["device"],
    }


def task(one: Mapping[str, Any]) -> str:
    """Return what a method is asked, such as "faces: smiling"."""
    return f"{one['evaluate']}: {one['edit']}"


def rows(family: Mapping[str, Any]) -> Iterator[tuple[list[str], bool]]:
    """Yield the cells of each method, as in `HEADINGS`, and whether it is above every baseline."""
    for name, one in family["methods"].items():
        known, best = QUESTIONS[one["evaluate"]].figures, one["best_baseline"]
        figures = {key: number(known[key], value) if key in known else UNDEFINED for key, value in one["figures"].items()}
        cells = [figures[key] for key in FIGURES]
        cells.insert(FIGURES.index("score") + 1, f"{number(known['score'], best['score'])} {best['name']}" if best else UNDEFINED)
        costs = [amount(one[cost]) for cost in ("training_seconds", "calls", "seconds")]
        yield [name, task(one), *cells, *costs], one["above"]


def note(family: Mapping[str, Any]) -> str:
    """Return what the table's reader must know: what was measured where, which methods are not above, and which are missing."""
    devices = " and ".join(sorted({one["device"] for one in family["methods"].values()}))
    said = [f"{family['images']} images of the {family['split']} split for each, seed {family['seed']}, {devices}.", NOTE, MEANT]
    below = {name: one["not_above"] for name, one in family["methods"].items() if one["not_above"]}
    if below:
        listed = (f"{name} ({', '.join(rivals)})" for name, rivals in below.items())
        said.append(f"Not above every baseline: {'; '.join(listed)}.")
    if family["missing"]:
        said.append(f"Not evaluated: {', '.join(family['missing'])}.")
    return " ".join(said)


def markdown_table(family: Mapping[str, Any]) -> str:
    """Return the table as Markdown, names and scores of methods above every baseline in bold, with its note."""
    lines = []
    for cells, above in rows(family):
        if above:
            cells[0], cells[SCORE] = f"**{cells[0]}**", f"**{cells[SCORE]}**"
        lines.append(cells)
    return f"{markdown.table(HEADINGS, lines, texts=TEXTS)}\n\n{note(family)}\n"


def terminal_table(family: Mapping[str, Any]) -> Table:
    """Return the main columns as a rich table; lines of methods that are above every baseline are bold."""
    table = Table(caption=note(family), caption_justify="left", box=SIMPLE_HEAD, collapse_padding=True, show_edge=False)
    for heading in NARROW:
        table.add_column(heading, justify="left" if HEADINGS.index(heading) < TEXTS else "right")
    for cells, above in rows(family):
        table.add_row(*(cells[HEADINGS.index(heading)] for heading in NARROW), style="bold" if above else "")
    return table


def _mean(entry: Mapping[str, Any], figure: str) -> float | None:
    found: dict[str, Any] = entry["variants"]["raw"]["figures"].get(figure, {"mean": None})
    return found["mean"]
