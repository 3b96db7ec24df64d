"""editkit cp"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editkit.cli.complete import complete_recipe


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("cp")(command)


def command(
    recipe: Annotated[str, typer.Argument(help="Recipe to start from.", autocompletion=complete_recipe)],
    to: Annotated[Path, typer.Argument(help="Your own recipe file, such as mine.yaml.")],
    full: Annotated[bool, typer.Option("--full", help="Copy all of it instead of referring to it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is already there.")] = False,
) -> None:
    """Start your own recipe from one of editkit's."""
    from editkit.app.copy import copy_recipe

    typer.echo(copy_recipe(recipe, to, full=full, force=force))
