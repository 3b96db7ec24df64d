"""editkit weights: list, fetch, verify"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Published weights: list, fetch, verify. Nothing is fetched without being asked.", no_args_is_help=True)


def _complete(incomplete: str) -> list[str]:
    from editkit.backbones.registry import entries

    return [name for name in entries() if name.startswith(incomplete)]


Names = Annotated[list[str] | None, typer.Argument(help="NAME, or NAME/PATTERN for some files.", autocompletion=_complete)]
Folder = Annotated[Path | None, typer.Option("--folder", help="Where weights lie; $EDITKIT_WEIGHTS or weights/ if not given.")]


@app.command("list")
def list_(folder: Folder = None) -> None:
    """List the weights that editkit knows, and which of them are here."""
    from editkit.app.weights import folder_of, table

    typer.echo(table(folder_of(folder)))


@app.command("fetch")
def fetch(
    names: Names = None,
    folder: Folder = None,
    offline: Annotated[
        Path | None, typer.Option(help="Take files that you fetched by hand from this folder; or $EDITKIT_OFFLINE.")
    ] = None,
) -> int:
    """Fetch weights; the same command continues where it broke off.

    editkit weights fetch irse50 'asyrp-deltas/smiling*'
    """
    from editkit.app.download import bars
    from editkit.app.weights import fetch, folder_of

    with bars() as watch:
        return fetch(names or [], folder_of(folder), lambda line: typer.echo(line, err=True), offline=offline, watch=watch)


@app.command("verify")
def verify(
    names: Names = None,
    folder: Folder = None,
) -> int:
    """Compare weights with their published sizes and hashes; all that are here if none is named."""
    from editkit.app.weights import folder_of, verify

    return verify(names or [], folder_of(folder), typer.echo)
