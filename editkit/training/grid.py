"""Sample grids: several images on one PNG."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def save_grid(images: Tensor, path: Path, *, gap: int = 2) -> Path:
    """Write images in [-1, 1], (N, 3, H, W) as a near-square or (rows, columns, 3, H, W) as laid out, as one PNG."""
    if images.ndim == 4:
        columns = math.ceil(math.sqrt(len(images)))
        rows = math.ceil(len(images) / columns)
        filler = images.new_ones(rows * columns - len(images), *images.shape[1:])
        images = torch.cat([images, filler]).unflatten(0, (rows, columns))
    rows, columns, _, height, width = images.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = pixels[row, column]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    Image.fromarray(sheet).save(draft, format="PNG")
    draft.replace(path)
    return path
