"""A contact sheet of training items: every picture of an item side by side, its caption underneath."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from editkit.data.items import image_array
from editkit.data.label_map import PALETTE

SIDE = 160  # pixels of a panel, at least
GAP, LINE, LINES = 8, 14, 3


def sheet(items: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw items, each a row of its pictures, masks, references and labels.

    Raises:
        ValueError: no items.
    """
    if not items:
        raise ValueError("a sheet needs at least one item")
    cells = [_cell(item) for item in items]
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    columns = max(1, min(len(cells), round(math.sqrt(len(cells) * height / width * 1.5))))
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), (255, 255, 255))
    for k, cell in enumerate(cells):
        page.paste(cell, (GAP + k % columns * (width + GAP), GAP + k // columns * (height + GAP)))
    return page


def _cell(item: Mapping[str, Any]) -> Image.Image:
    panels = [_enlarged(panel) for panel in _panels(item)]
    width = sum(panel.width for panel in panels) + GAP // 2 * (len(panels) - 1)
    height = max(panel.height for panel in panels)
    cell = Image.new("RGB", (width, height + LINE * LINES + 4), (255, 255, 255))
    left = 0
    for panel in panels:
        cell.paste(panel, (left, 0))
        left += panel.width + GAP // 2
    ImageDraw.Draw(cell).multiline_text(
        (0, height + 2), _words(item, width), (60, 60, 60), font=ImageFont.load_default(11), spacing=3
    )
    return cell


def _panels(item: Mapping[str, Any]) -> Iterator[np.ndarray]:
    for value in item.values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Tensor) and part.ndim == 3 and part.shape[0] == 3:
                yield image_array(part)
            elif isinstance(part, Tensor) and part.ndim == 3 and part.shape[0] == 1:
                yield image_array(part.float().mul(2).sub(1).expand(3, -1, -1))
            elif isinstance(part, Tensor) and part.ndim == 2 and part.dtype == torch.int64:
                yield np.array(PALETTE, dtype=np.uint8)[part.numpy() % len(PALETTE)]


def _enlarged(panel: np.ndarray) -> Image.Image:
    """Enlarge a small picture by a whole number, so that its pixels stay what they are."""
    picture = Image.fromarray(panel)
    factor = max(1, -(-SIDE // picture.height))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _words(item: Mapping[str, Any], width: int) -> str:
    captions = item.get("captions") or [item.get("caption") or item.get("key", "")]
    room, lines = width // 6, [""]
    for word in " / ".join(str(getattr(caption, "text", caption)) for caption in captions).split():
        if len(lines[-1]) + len(word) >= room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines if len(lines) <= LINES else [*lines[: LINES - 1], lines[LINES - 1] + " ..."])
