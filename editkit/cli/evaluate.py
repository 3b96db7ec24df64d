"""editkit evaluate"""

from __future__ import annotations

import typer

from editkit.app.options import EvaluateOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("evaluate")(command)


@takes(EvaluateOptions)
def command(options: EvaluateOptions) -> int | None:
    """Score methods on images with a known answer, beside baselines.

    editkit evaluate --method asyrp --edit smiling -o report

    editkit evaluate --method asyrp --method clip-guided --edit smiling --edit old --jobs 2

    editkit evaluate --family weakly_supervised --weights effdiff=runs/effdiff -o out/family"""
    if options.family:
        from editkit.app.family import evaluate_family

        return evaluate_family(options)
    from editkit.app.evaluate import evaluate

    return evaluate(options)
