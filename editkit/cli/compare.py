"""editkit compare"""

from __future__ import annotations

import typer

from editkit.app.options import CompareOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("compare")(command)


@takes(CompareOptions)
def command(options: CompareOptions) -> int | None:
    """Edit the same pictures by several methods: one sheet, one table, one report.

    editkit compare asyrp clip-guided --image face.png --prompt 'a smiling face'"""
    from editkit.app.compare import compare

    return compare(options)
