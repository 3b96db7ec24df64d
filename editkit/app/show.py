"""What a recipe is, in full: its comments, its card and its resolved settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from editkit.app.catalogue import of_family
from editkit.app.options import EvaluateOptions, RecipeOptions
from editkit.recipe import compose, frozen, recipe_file, thaw, validate


def describe(recipe: str, conf: Sequence[Path] = ()) -> str:
    """Return the text of a recipe's file: the commands to run it, its card, and what it changes.

    Raises:
        RecipeError: no recipe has this name.
    """
    return recipe_file(recipe, conf).read_text(encoding="utf-8")


def resolved(options: RecipeOptions | EvaluateOptions) -> str:
    """Return the configuration that a command would use, as YAML, after checking that all it names exists.

    Several methods make several documents.

    Raises:
        RecipeError: anything that would stop the command before it starts.
    """
    if isinstance(options, EvaluateOptions):
        if options.family:
            options = replace(options, family=None, methods=of_family(options.family, options.conf))
        return "---\n".join(resolved(one) for one in options.recipes())
    source = getattr(options, "source", None)
    if source:
        cfg = thaw(source)
    else:
        cfg = compose(options.recipe_overrides(), prompts=options.texts(), conf_dirs=options.conf)
    validate(cfg)
    return yaml.safe_dump(frozen(cfg), sort_keys=False, allow_unicode=True, width=120)
