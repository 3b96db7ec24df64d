"""Turns a dataclass of options into the signature of a verb, so that options, help and the Python API are one list."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from typing import Annotated, Any

import typer

from editkit.app.options import COMPUTING, INPUTS, RECIPE
from editkit.cli.complete import complete_backbone, complete_override, complete_recipe

COMPLETIONS = {
    "method": complete_recipe,
    "methods": complete_recipe,
    "backbone": complete_backbone,
    "overrides": complete_override,
}


def _resolved(options: Any) -> str:
    from editkit.app.show import resolved

    return resolved(options)


def takes(kind: type[Any], dry_run: Callable[[Any], str] = _resolved) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Make `verb(options)` a command with one option per field of `kind`; overrides are its positional arguments.

    With --dry-run the verb is not called: what `dry_run(options)` returns is printed instead, the resolved recipe by default.
    """

    def decorate(verb: Callable[[Any], Any]) -> Callable[..., Any]:
        @wraps(verb)
        def command(**typed: Any) -> Any:
            options = kind(**{name: value for name, value in typed.items() if value is not None})
            if getattr(options, "dry_run", False):
                return typer.echo(dry_run(options), nl=False)
            return verb(options)

        hints = typing.get_type_hints(kind)
        ordered = sorted(fields(kind), key=_place)
        parameters = [_parameter(f, hints[f.name]) for f in ordered]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _place(f: Field[Any]) -> tuple[bool, bool, int]:
    """Order single arguments before the list of overrides, which takes all that is left, and options by their group."""
    return (not f.metadata["positional"], f.name == "overrides", (INPUTS, RECIPE, COMPUTING).index(f.metadata["group"]))


def _parameter(f: Field[Any], hint: Any) -> inspect.Parameter:
    """Return the parameter of one field; what the user leaves out arrives as None or as the field's default."""
    about = f.metadata
    repeats = typing.get_origin(hint) is list
    default = None if repeats else f.default
    shared = {"help": about["help"], "show_default": default not in (None, False), "autocompletion": _completion(f)}
    if about["positional"]:
        info: Any = typer.Argument(metavar="[KEY=VALUE]..." if f.name == "overrides" else None, **shared)
    else:
        names = [about["name"] or f"--{f.name.replace('_', '-')}", *filter(None, [about["also"]])]
        info = typer.Option(*names, rich_help_panel=about["group"], **shared)
    annotation = Annotated[hint | None if repeats else hint, info]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _completion(f: Field[Any]) -> Callable[..., list[str]] | None:
    choices = f.metadata["choices"]
    if choices:
        return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]
    return COMPLETIONS.get(f.name)
