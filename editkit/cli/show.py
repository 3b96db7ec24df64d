"""editkit show"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editkit.cli.complete import complete_recipe


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("show")(command)


def command(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as asyrp.", autocompletion=complete_recipe)],
    conf: Annotated[list[Path] | None, typer.Option(help="A folder of your own recipes.")] = None,
) -> None:
    """Show one recipe: what it is, what it needs, and its settings."""
    from editkit.app.show import describe

    typer.echo(describe(recipe, conf or []), nl=False)
