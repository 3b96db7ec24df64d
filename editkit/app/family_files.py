"""The files of a family's table, and the few pictures that each method leaves in its folder for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from editkit.app.grid import save_grid
from editkit.app.report import page
from editkit.app.standings import HEADINGS, markdown_table, note, rows, task
from editkit.app.trial import Trial
from editkit.app.verdict import write_json
from editkit.data.files import write_atomic
from editkit.data.fit import to_pil
from editkit.data.items import image_tensor
from editkit.errors import UserError

STRIP = "pictures.png"
ROWS = 3  # source, edited, truth
SHOWN = 6


def save_pictures(folder: Path, trial: Trial) -> None:
    """Keep a trial's first pictures as they are: source, edited and truth, one row each, in one PNG without loss.

    Raises:
        UserError: the file cannot be written.
    """
    (method,) = trial.methods
    shown = (trial.cases.images, trial.outcomes[method].variants["raw"], trial.cases.truth)
    strip = torch.cat([torch.cat(list(images[:SHOWN]), 2) for images in shown], 1)
    write_atomic(folder / STRIP, lambda file: to_pil(strip).save(file, "PNG"))


def read_pictures(folder: Path) -> Tensor:
    """Return those pictures (3, N, 3, H, W) in [-1, 1]: by row and column of the PNG.

    Raises:
        UserError: there is no such file.
    """
    try:
        with Image.open(folder / STRIP) as file:
            strip = image_tensor(file.convert("RGB"))
    except OSError as error:
        raise UserError(f"cannot read {folder / STRIP}: {error}; remove that folder and run the command again") from error
    height = strip.shape[1] // ROWS
    return strip.unflatten(1, (ROWS, height)).unflatten(3, (-1, height)).permute(1, 3, 0, 2, 4)


def write(output: Path, family: Mapping[str, Any]) -> list[Path]:
    """Write a family's metrics.json, table.md, report.html and sheet.png, and return their paths.

    Args:
        output: folder, with a folder of each method in it.
        family: what metrics.json holds.

    Raises:
        UserError: one cannot be written, or a method's pictures are not there.
    """
    pictures = {name: read_pictures(output / name) for name in family["methods"]}
    report = page(
        "family.html",
        family=family,
        headings=HEADINGS,
        rows=list(rows(family)),
        note=note(family),
        tasks={name: task(one) for name, one in family["methods"].items()},
        gallery={name: list(zip(*shown, strict=True)) for name, shown in pictures.items()},
    )
    for name, text in {"table.md": markdown_table(family), "report.html": report}.items():
        write_atomic(output / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    write_json(output / "metrics.json", family)
    labels = [label for name in pictures for label in ("source", name, "truth")]
    sheet = save_grid(output / "sheet.png", [row for shown in pictures.values() for row in shown], labels=labels)
    return [output / "metrics.json", output / "table.md", output / "report.html", sheet]
