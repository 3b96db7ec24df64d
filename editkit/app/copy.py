"""Starts a user's own recipe from one of editkit's."""

from __future__ import annotations

from pathlib import Path

from editkit.errors import UsageError, UserError
from editkit.recipe import recipe_file

STUB = """\
# @package _global_
# My variant of {recipe}. See what it starts from:   editkit show {recipe}
#   editkit train recipe={path} --dry-run
defaults:
  - /recipe/{recipe}
  - _self_

# What differs goes here, for example:
# trainer:
#   steps: 500
"""


def copy_recipe(recipe: str, to: Path, *, full: bool = False, force: bool = False) -> str:
    """Write a recipe file that starts from `recipe` and return what to type next.

    Args:
        to: the new .yaml file, or a folder for a file of the same name.
        full: copy all of the recipe instead of referring to it.
        force: replace a file that is already there.

    Raises:
        UsageError: an unknown recipe, a file that is already there, a name that does not end in .yaml.
        UserError: the file cannot be written.
    """
    source = recipe_file(recipe)
    to = to / source.name if to.is_dir() else to
    if to.suffix != ".yaml":
        raise UsageError(f"a recipe file ends in .yaml: editkit cp {recipe} {to}.yaml")
    if to.exists() and not force:
        raise UsageError(f"{to} is already there; --force replaces it")
    path = to.as_posix() if to.is_absolute() else f"./{to.as_posix()}"
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(source.read_text(encoding="utf-8") if full else STUB.format(recipe=recipe, path=path), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {to}: {error.strerror}") from error
    return f"{to} starts from {recipe}; run it with: editkit train recipe={path}"
