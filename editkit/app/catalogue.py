"""The table of methods, made of the cards in the recipes: for the terminal and for the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from editkit.app.markdown import insert
from editkit.errors import UsageError, suggestion
from editkit.recipe import Card, cards

FAMILIES = {
    "weak": "weakly supervised",
    "self": "self-supervised",
    "full": "fully supervised",
    "none": "no training",
    "baseline": "baseline",
}
MARK = "methods"
START, END = f"<!-- {MARK} -->", f"<!-- /{MARK} -->"
REPEATED = {"references": "reference", "reference_masks": "reference_mask"}  # options named after one of several inputs
COLUMNS = ("method", "what it does", "family", "inputs", "recipe", "paper")


def methods(conf: Sequence[Path] = ()) -> list[Card]:
    """Return the cards of the methods' own recipes, without the variants kept in folders (paper/, toy/)."""
    return [card for card in cards(conf) if "/" not in card.recipe]


def rows(conf: Sequence[Path] = ()) -> list[tuple[str, ...]]:
    """Return one row a method, its cells as in `COLUMNS`, ordered by family and name."""
    found = methods(conf)
    variants = {card.recipe for card in cards(conf)} - {card.recipe for card in found}
    order = list(FAMILIES)
    found.sort(key=lambda card: (order.index(card.family) if card.family in order else len(order), card.recipe))
    return [_row(card, f"paper/{card.recipe}" in variants) for card in found]


def of_family(name: str, conf: Sequence[Path] = ()) -> list[str]:
    """Return the recipes of a family's methods by name, such as those of "weakly_supervised".

    Raises:
        UsageError: no such family, or one without methods.
    """
    keys = {text.replace(" ", "_").replace("-", "_"): key for key, text in FAMILIES.items() if key != "baseline"}
    if name not in keys:
        raise UsageError(f"there is no family {name!r}.{suggestion(name, keys)} Choose from {', '.join(keys)}")
    found = sorted(card.recipe for card in methods(conf) if card.family == keys[name])
    if not found:
        raise UsageError(f"the family {name} has no methods yet")
    return found


def plain_table() -> str:
    """Return the table for a terminal, one line a method, without what does not fit."""
    table = [("recipe", "family", "inputs", "what it does")] + [(row[4].split(",")[0], row[2], row[3], row[1]) for row in rows()]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip() for row in table
    )


def markdown_table() -> str:
    """Return the table between its markers, as the README holds it."""
    return f"{START}\n{_body()}\n{END}"


def _body() -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows():
        cells = [cell.replace("|", "\\|") for cell in row]
        cells[4] = ", ".join(f"`{name}`" for name in cells[4].split(", "))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def update_file(path: Path | str) -> None:
    """Replace what stands between the markers of a Markdown file by the table.

    Raises:
        UserError: the file cannot be read or has no such markers.
    """
    insert(Path(path), MARK, _body())


def _row(card: Card, has_paper: bool) -> tuple[str, ...]:
    recipes = ", ".join([card.recipe, f"paper/{card.recipe}"] if has_paper else [card.recipe])
    inputs = " ".join([*map(_option, card.needs), *(f"[{_option(name)}]" for name in card.takes)])
    return (card.title or card.recipe, card.summary, FAMILIES.get(card.family, card.family), inputs, recipes, card.paper)


def _option(name: str) -> str:
    return f"--{REPEATED.get(name, name).replace('_', '-')}"
