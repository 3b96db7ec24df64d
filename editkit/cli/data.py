"""editkit data"""

from __future__ import annotations

import typer

app = typer.Typer(help="Render, check and look at data.", no_args_is_help=True)


@app.command("render")
def render() -> None:
    """Write images of the toy world as a folder."""
