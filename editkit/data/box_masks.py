"""Masks around a box as Paint by Example trains on them (arXiv 2211.13227, section 3.3, and its released data loader)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from editkit.data.photo import Box

GROWTH = 0.4  # of the way to the frame that a side of the box may move outwards
POINTS = 18  # of a curve, at 0.05, 0.10... 0.90 of it
SHAPED = 0.5  # share of the masks that are no rectangles

Point = tuple[float, float]


def training_mask(box: Box, size: tuple[int, int], *, jitter: int = 5, shaped: float = SHAPED) -> tuple[Tensor, Box]:
    """Return a random mask (1, H, W), 1 = edit here, about a box, and the extended box that it lies in but for its jitter.

    The extended box itself, or with the chance `shaped` a polygon along curves that bulge from the box towards it.

    Args:
        box: left, top, right, bottom.
        size: (height, width) of the picture.
        jitter: farthest that a polygon's point is moved along x and y, in pixels.
        shaped: see above.
    """
    outer = extended(box, size)
    picture = Image.new("L", (size[1], size[0]))
    if torch.rand(()) < shaped:
        ImageDraw.Draw(picture).polygon(outline(box, outer, jitter), fill=1)
    else:
        picture.paste(1, outer)
    return torch.from_numpy(np.array(picture)).float()[None], outer


def extended(box: Box, size: tuple[int, int]) -> Box:
    """Return a box with each side moved outwards by up to GROWTH of its distance to the frame."""
    (left, top, right, bottom), (height, width) = box, size
    return (
        left - _whole(int(GROWTH * left)),
        top - _whole(int(GROWTH * top)),
        right + _whole(int(GROWTH * (width - right))),
        bottom + _whole(int(GROWTH * (height - bottom))),
    )


def outline(box: Box, outer: Box, jitter: int) -> list[Point]:
    """Return the corners of a polygon: points of four quadratic Bezier curves over the box's sides, each moved a little.

    A curve's middle control point lies over the middle of its side, on the outer box. As in the released code a point whose
    x or y the curve had before is left out, so that a curve without bulge is one point.
    """
    return [(x + _shift(jitter), y + _shift(jitter)) for curve in sides(box, outer) for x, y in _distinct(curve)]


def sides(box: Box, outer: Box) -> list[tuple[Point, Point, Point]]:
    """Return start, control point and end of the four curves, clockwise from the top left corner."""
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    return [
        ((left, top), (x, outer[1]), (right, top)),
        ((right, top), (outer[2], y), (right, bottom)),
        ((right, bottom), (x, outer[3]), (left, bottom)),
        ((left, bottom), (outer[0], y), (left, top)),
    ]


def _distinct(curve: tuple[Point, Point, Point]) -> Iterator[Point]:
    seen_x: set[float] = set()
    seen_y: set[float] = set()
    for k in range(1, POINTS + 1):
        s = 0.05 * k
        x, y = (a + 2 * s * (1 - s) * (b - a) + s**2 * (c - a) for a, b, c in zip(*curve, strict=True))
        if x not in seen_x and y not in seen_y:
            seen_x.add(x)
            seen_y.add(y)
            yield x, y


def _whole(most: int) -> int:
    """Return a random whole number from 0 to `most`."""
    return int(torch.randint(most + 1, ()))


def _shift(most: int) -> int:
    return int(torch.randint(-most, most + 1, ()))
