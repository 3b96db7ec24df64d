"""editkit task"""

from __future__ import annotations

import typer

from editkit.app.options import TaskOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("task")(command)


@takes(TaskOptions)
def command(options: TaskOptions) -> int | None:
    """Run a step of a method that is not training, such as asyrp's calibration.

    editkit task asyrp calibrate data=folder data.root=my_photos
    """
    from editkit.app.task import run_task

    return run_task(options)
