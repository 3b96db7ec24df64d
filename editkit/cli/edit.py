"""editkit edit"""

from __future__ import annotations

import typer

from editkit.app.options import EditOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("edit")(command)


@takes(EditOptions)
def command(options: EditOptions) -> int | None:
    """Edit an image, or a folder of them.

    editkit edit --method asyrp --image face.png --prompt 'a smiling face' -o out.png"""
    from editkit.app.edit import edit_images

    return edit_images(options)
