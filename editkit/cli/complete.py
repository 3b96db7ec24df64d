"""Shell completion of recipe names, group choices and keys. It never fails: a mistake offers nothing."""

from __future__ import annotations

import typer


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes that start so."""
    from editkit.recipe import choices

    return [name for name in choices("recipe") if name.startswith(incomplete)]


def complete_backbone(incomplete: str) -> list[str]:
    """Return the backbones that start so."""
    from editkit.recipe import choices

    return [name for name in choices("backbone") if name.startswith(incomplete)]


def complete_override(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return what `incomplete` may become: `recipe=as` a recipe, `trainer.st` a key of the recipe typed so far.

    Bash ends words at `=`, so that `recipe=as` arrives as `recipe`, `=`, `as`; then only the last part is wanted back.
    """
    words = list(ctx.params.get("overrides") or [])
    prefix = ""
    if incomplete == "=" and words:
        prefix, incomplete = f"{words.pop()}=", ""
    elif len(words) > 1 and words[-1] == "=":
        prefix = f"{words[-2]}="
        words = words[:-2]
    try:
        method = ctx.params.get("method") or next(iter(ctx.params.get("methods") or []), None)
        found = overrides_like(prefix + incomplete, _rejoined(words), method)
    except Exception:  # a traceback in the middle of the prompt helps nobody
        return []
    return [text.removeprefix(prefix) for text in found]


def overrides_like(incomplete: str, words: list[str], method: str | None) -> list[str]:
    """Return the overrides that start with `incomplete`, given those typed before it."""
    from editkit.recipe import choices, compose, groups, keys

    group, equals, start = incomplete.partition("=")
    if equals:
        return [f"{group}={name}" for name in choices(group) if name.startswith(start)] if group in groups() else []
    chosen = [text for text in words if text.partition("=")[0] in groups()] + ([f"recipe={method}"] if method else [])
    from omegaconf import OmegaConf

    names = [*groups(), *keys(OmegaConf.to_container(compose(chosen)))]
    return [f"{name}=" for name in names if name.startswith(incomplete)]


def _rejoined(words: list[str]) -> list[str]:
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    return joined
