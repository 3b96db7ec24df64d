"""The recipe and group files on disk: their names and their cards, read without hydra or torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editkit.errors import suggestion
from editkit.recipe_checks import RecipeError, one_line

CONF = Path(__file__).parent / "conf"


def groups(folders: Sequence[Path | str] = ()) -> list[str]:
    """Return the names of the configuration groups: backbone, data, recipe..."""
    entries = [entry for root in (CONF, *folders) for entry in Path(root).iterdir()]
    return sorted({"recipe"} | {entry.name for entry in entries if entry.is_dir() and any(entry.glob("*.yaml"))})


def choices(group: str, folders: Sequence[Path | str] = ()) -> list[str]:
    """Return the names that a group offers, nested ones with their folder (`paper/asyrp`)."""
    roots = [Path(root) / group for root in (CONF, *folders)]
    return sorted({path.relative_to(root).with_suffix("").as_posix() for root in roots for path in root.rglob("*.yaml")})


@dataclass(frozen=True)
class Card:
    """What a recipe says about its method; everything but the name may be missing.

    Attributes:
        recipe: what to type after `recipe=`.
        family: `weak`, `self` or `full`: how much supervision the method needs.
        needs: inputs that an edit must have, named like their options.
        takes: inputs that it may have.
        rest: all other entries.
    """

    recipe: str
    title: str = ""
    family: str = ""
    summary: str = ""
    paper: str = ""
    licence: str = ""
    weights: str = ""
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    rest: Mapping[str, Any] = field(default_factory=dict)


def cards(folders: Sequence[Path | str] = ()) -> list[Card]:
    """Return the cards of all recipes, by name; read from the yaml files alone."""
    return [card_of(name, path) for name in choices("recipe", folders) if (path := recipe_file(name, folders))]


def card_of(name: str, path: Path) -> Card:
    """Return the card of one recipe file."""
    import yaml

    try:
        entries = dict((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("card") or {})
    except yaml.YAMLError as error:
        raise RecipeError(f"cannot read {path}: {one_line(error)}") from error
    texts = {key: str(entries.pop(key, None) or "") for key in ("title", "family", "summary", "paper", "licence", "weights")}
    inputs = {key: tuple(entries.pop(key, None) or ()) for key in ("needs", "takes")}
    return Card(recipe=name, rest=entries, **texts, **inputs)


def recipe_file(name: str, folders: Sequence[Path | str] = ()) -> Path:
    """Return the yaml file of a recipe.

    Raises:
        RecipeError: no recipe has this name.
    """
    for root in (CONF, *folders):
        if (path := Path(root) / "recipe" / f"{name}.yaml").is_file():
            return path
    raise RecipeError(no_choice("recipe", name, folders))


def no_choice(group: str, name: str, folders: Sequence[Path | str] = ()) -> str:
    """Return the message for a name that a group does not offer."""
    known = choices(group, folders)
    return f"there is no {group} {name!r}.{suggestion(name, known)} Known: {', '.join(known) or 'none'}."
