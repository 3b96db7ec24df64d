"""editkit invert"""

from __future__ import annotations

import typer

from editkit.app.options import InvertOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("invert")(command)


@takes(InvertOptions)
def command(options: InvertOptions) -> int | None:
    """Turn an image into noise and back, and say how well that went.

    editkit invert --image face.png --inverter fixed-point -o face.inv.safetensors

    editkit invert --image folder --inverter all --backbone toy_latent"""
    if options.inverter == "all":
        from editkit.app.inverters import tabulate_inverters

        return tabulate_inverters(options)
    from editkit.app.invert import invert_images

    return invert_images(options)
