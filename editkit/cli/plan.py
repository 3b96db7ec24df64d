"""editkit plan"""

from __future__ import annotations

import typer

from editkit.app.options import PlanOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("plan")(command)


@takes(PlanOptions)
def command(options: PlanOptions) -> int | None:
    """Tell what a training will take, before it is started: memory, time, disk.

    editkit plan recipe=paper/instructpix2pix --gpu a100-40 --price 2.50"""
    from editkit.app.plan import plan

    return plan(options)
