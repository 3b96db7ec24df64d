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

    Stable Diffusion and what is built on it becomes the folder of a diffusers pipeline. Its tokenizer is in no checkpoint:
    it is made of OpenAI's vocabulary where that lies beside the file, or taken from tokenizer=PATH, a folder or that
    vocabulary; without either the folder has none. Of raw and averaged weights the averaged ones are taken; weights=raw
    takes the others.

    editkit convert v1-5-pruned-emaonly.ckpt tokenizer=weights/clip -o weights/sd15
    """
    from editkit.app.convert import convert

    path, told = convert(options)
    for line in told:
        typer.echo(line, err=True)
    typer.echo(path)
