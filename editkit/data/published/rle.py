"""The masks of COCO's annotations: polygons, and run lengths of columns, as numbers or packed into a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from editkit.errors import UserError


def decode(segmentation: Sequence[Sequence[float]] | Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return a segmentation of a picture of (width, height) as bool (H, W).

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, whose union it is, or {"size": [h, w], "counts": ...} with
            counts of zeros, ones, zeros... down the columns.

    Raises:
        UserError: run lengths of a picture of another size.
    """
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        return _filled(unpacked(counts) if isinstance(counts, str) else counts, size)
    return _drawn(segmentation, size)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return a bool (H, W) mask as {"size": [h, w], "counts": [...]}."""
    flat = mask.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def unpacked(text: str) -> list[int]:
    """Return the run lengths in a text of COCO's own packing.

    Each character holds five bits above "0" and a sixth that says whether more follow; numbers are two's complement, lowest
    bits first, and from the fourth on they are differences from the number two before.
    """
    counts: list[int] = []
    place = value = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << place
        place += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << place
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        place = value = 0
    return counts


def _filled(counts: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    width, height = size
    if sum(counts) != width * height or min(counts, default=0) < 0:
        raise UserError(f"a mask's run lengths cover {sum(counts)} pixels but its picture has {width} x {height}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


def _drawn(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Fill every pixel whose centre lies in one of the polygons."""
    from skimage.draw import polygon

    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    for corners in polygons:
        points = np.asarray(corners, dtype=np.float64).reshape(-1, 2) - 0.5
        mask[polygon(points[:, 1], points[:, 0], mask.shape)] = True
    return mask
