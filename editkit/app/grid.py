"""Rows of pictures with labels, as one PNG: source, reconstruction, edit, truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from editkit.data.fit import to_pil
from editkit.errors import UserError

GAP, TEXT, SMALLEST = 4, 14, 96
INK, PAPER = (32, 33, 36), (255, 255, 255)


def grid(
    rows: Sequence[Sequence[Tensor] | Tensor], *, labels: Sequence[str] = (), columns: Sequence[str] = (), size: int | None = None
) -> Image.Image:
    """Return rows of images (3, H, W) in [-1, 1] as one picture; rows may have different lengths.

    Args:
        rows: the images, row by row.
        labels: text to the left of each row.
        columns: text above each column.
        size: height of every cell in pixels; None is the images' own, at least 96 so that small ones can be seen.
    """
    pictures = [[to_pil(image) for image in row] for row in rows]
    size = size or max(SMALLEST, max(cell.height for row in pictures for cell in row))
    pictures = [[_at(cell, size) for cell in row] for row in pictures]
    width = max(cell.width for row in pictures for cell in row)
    font = ImageFont.load_default(TEXT)
    left = max((round(font.getlength(label)) + 2 * GAP for label in labels), default=GAP)
    top = TEXT + 2 * GAP if columns else GAP
    count = max(len(row) for row in pictures)
    page = Image.new("RGB", (left + count * (width + GAP), top + len(pictures) * (size + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    for column, text in enumerate(columns):
        draw.text((left + column * (width + GAP) + width / 2, top / 2), text, INK, font, anchor="mm")
    for number, row in enumerate(pictures):
        y = top + number * (size + GAP)
        if number < len(labels):
            draw.text((GAP, y + size / 2), labels[number], INK, font, anchor="lm")
        for column, cell in enumerate(row):
            page.paste(cell, (left + column * (width + GAP), y))
    return page


def save_grid(
    path: Path, rows: Sequence[Sequence[Tensor] | Tensor], *, labels: Sequence[str] = (), columns: Sequence[str] = ()
) -> Path:
    """Write a labelled grid as a PNG and return its path.

    Raises:
        UserError: the file cannot be written.
    """
    page = grid(rows, labels=labels, columns=columns)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _at(cell: Image.Image, size: int) -> Image.Image:
    return cell.resize((round(cell.width * size / cell.height), size), Image.Resampling.BICUBIC)
