"""editkit sample"""

from __future__ import annotations

import typer

from editkit.app.options import SampleOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("sample")(command)


@takes(SampleOptions)
def command(options: SampleOptions) -> int | None:
    """Make new images from noise.

    editkit sample --backbone toy_faces --samples 16 -o sheet.png"""
    from editkit.app.sample import sample_images

    return sample_images(options)
