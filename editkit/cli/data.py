"""editkit data: render, check, preview"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from editkit.app.data import PreviewOptions
from editkit.cli.complete import complete_recipe
from editkit.cli.signature import takes

LAYOUT = "folder, coco, openimages, instructpix2pix, instructpix2pix-parquet, magicbrush or webdataset."
app = typer.Typer(help="Make, check and look at data sets.", no_args_is_help=True)


@app.command("render")
def render(
    out: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; the same command again continues.")],
    domain: Annotated[str, typer.Option(help="Domain of the toy world: faces, animals or scenes.")] = "faces",
    n: Annotated[int, typer.Option("-n", "--number", help="How many pictures.", min=1)] = 1000,
    split: Annotated[str, typer.Option(help="train, validation, test or heldout.")] = "train",
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.", min=8)] = 64,
    layout: Annotated[str, typer.Option(help=LAYOUT)] = "folder",
) -> None:
    """Render pictures of the toy world with captions, factors and part labels, or in the layout of a published data set.

    editkit data render --domain faces -n 1000 -o faces
    editkit data render --domain scenes --layout coco -n 1000 -o coco
    """
    from rich.console import Console
    from rich.progress import Progress

    from editkit.app.data import render_data

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("rendering", total=n)
        folder = render_data(
            domain, n, out, split=split, size=size, layout=layout, on_done=lambda done: bar.update(task, completed=done)
        )
    typer.echo(folder)


@app.command("check")
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of images, or of a published data set.")],
    method: Annotated[str | None, typer.Option("--for", help="Recipe to train on it.", autocompletion=complete_recipe)] = None,
    conf: Annotated[list[Path] | None, typer.Option(help="A folder of your own recipes.")] = None,
) -> int:
    """Say what is wrong with a folder, and what a method lacks there.

    editkit data check my_photos --for asyrp
    """
    from editkit.app.check import check_data

    findings = check_data(folder, method, conf=conf or [])
    for finding in findings:
        typer.echo(str(finding))
    return int(any(finding.kind in ("bad", "missing") for finding in findings))


@app.command("preview")
@takes(PreviewOptions)
def preview(options: PreviewOptions) -> None:
    """Write a contact sheet of what a recipe's training sees.

    editkit data preview recipe=asyrp -o preview.png
    """
    from editkit.app.data import preview

    typer.echo(preview(options))
