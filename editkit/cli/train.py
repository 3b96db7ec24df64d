"""editkit train"""

from __future__ import annotations

import typer

from editkit.app.options import TrainOptions
from editkit.cli.signature import takes


def _resolved(options: TrainOptions) -> str:
    from editkit.app.staged import resolved

    return resolved(options)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("train")(command)


@takes(TrainOptions, _resolved)
def command(options: TrainOptions) -> int | None:
    """Train a method; the same command again continues.

    editkit train recipe=asyrp --prompt 'a smiling face' trainer.steps=200"""
    from editkit.app.train import train

    return train(options)
