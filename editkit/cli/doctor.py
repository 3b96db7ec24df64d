"""editkit doctor"""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("doctor")(command)


def command() -> int:
    """Check this machine: versions, processor, memory, disk, bundled weights."""
    from editkit.app.doctor import examine

    return examine(typer.echo)
