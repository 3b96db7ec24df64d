"""editkit methods"""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("methods")(command)


def command(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown, as in the README.")] = False,
    update: Annotated[str | None, typer.Option("--update", help="Put the table between the markers of this file.")] = None,
) -> None:
    """List the methods: what each one needs, and its recipe."""
    from editkit.app.catalogue import markdown_table, plain_table, update_file

    if update:
        update_file(update)
    else:
        typer.echo(markdown_table() if markdown else plain_table())
