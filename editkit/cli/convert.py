"""editkit convert"""

from __future__ import annotations

import typer

from editkit.app.convert import ConvertOptions
from editkit.cli.signature import takes


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("convert")(command)


@takes(ConvertOptions)
def command(options: ConvertOptions) -> None:
    """Turn a published checkpoint into safetensors that editkit reads. Nothing in the file is run.

    editkit convert celeba_hq.ckpt -o weights/celebahq --licence MIT
    """
    from editkit.app.convert import convert

    path, told = convert(options)
    for line in told:
        typer.echo(line, err=True)
    typer.echo(path)
