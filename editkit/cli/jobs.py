"""editkit jobs"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("jobs")(command)


def command(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> int:
    """List runs: state, progress, loss, time left, SLURM job."""
    from editkit.app.runs import list_runs

    return list_runs(folder, as_json=as_json)
