"""The outlines of the objects, as polygons in a frame of their own: -1 to 1, y downwards, upright."""

from __future__ import annotations

import math
from typing import NamedTuple

from editkit.data.toyworld.canvas import Point

Polygon = tuple[Point, ...]


class Part(NamedTuple):
    """A polygon and its ink: "body" (the object's colour and texture), "light", "dark", or "hole" (nothing)."""

    points: Polygon
    ink: str = "body"


def _round(x: float, y: float, rx: float, ry: float | None = None, start: float = 0.0, end: float = 360.0) -> Polygon:
    """Return an ellipse, or an arc of it between two angles in degrees (clockwise, 0 is to the right)."""
    steps = max(8, round(abs(end - start) / 10))
    angles = [math.radians(start + (end - start) * k / steps) for k in range(steps + 1)]
    return tuple((x + rx * math.cos(a), y + (rx if ry is None else ry) * math.sin(a)) for a in angles)


def _star(points: int, outer: float, inner: float) -> Polygon:
    turns = [(inner if k % 2 else outer, math.pi * k / points - math.pi / 2) for k in range(2 * points)]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in turns)


def _heart() -> Polygon:
    angles = [2 * math.pi * k / 40 for k in range(40)]
    bumps = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return tuple((math.sin(a) ** 3, (-bump - 2.5) / 15) for a, bump in zip(angles, bumps, strict=True))


def _flower() -> tuple[Part, ...]:
    turns = [math.radians(72 * k - 90) for k in range(5)]
    petals = tuple(Part(_round(0.56 * math.cos(a), 0.56 * math.sin(a), 0.42)) for a in turns)
    return (*petals, Part(_round(0, 0, 0.3), "light"))


ARM = 0.34  # half the width of the cross
SHAPES: dict[str, tuple[Part, ...]] = {
    "circle": (Part(_round(0, 0, 0.94)),),
    "square": (Part(((-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84))),),
    "triangle": (Part(((0, -0.98), (1.0, 0.8), (-1.0, 0.8))),),
    "star": (Part(_star(5, 1.08, 0.46)),),
    "heart": (Part(_heart()),),
    "ring": (Part(_round(0, 0, 0.98)), Part(_round(0, 0, 0.46), "hole")),
    "cross": (
        Part(
            (
                *((-ARM, -1.0), (ARM, -1.0), (ARM, -ARM), (1.0, -ARM), (1.0, ARM), (ARM, ARM)),
                *((ARM, 1.0), (-ARM, 1.0), (-ARM, ARM), (-1.0, ARM), (-1.0, -ARM), (-ARM, -ARM)),
            )
        ),
    ),
    "arrow": (Part(((-1.05, -0.32), (0.1, -0.32), (0.1, -0.85), (1.08, 0), (0.1, 0.85), (0.1, 0.32), (-1.05, 0.32))),),
    "flower": _flower(),
    "fish": (
        Part(((0.3, 0), (1.08, -0.66), (0.92, 0), (1.08, 0.66))),
        Part(_round(-0.24, 0, 0.82, 0.62)),
        Part(_round(-0.66, -0.14, 0.13), "dark"),
    ),
    "cup": (
        Part(_round(0.56, 0.02, 0.5, 0.5)),
        Part(_round(0.56, 0.02, 0.24, 0.24), "hole"),
        Part(((-0.86, -0.78), (0.5, -0.78), (0.4, 0.86), (-0.76, 0.86))),
        Part(_round(-0.18, -0.76, 0.68, 0.2), "dark"),
    ),
    "mushroom": (
        Part(((-0.36, 0.15), (0.36, 0.15), (0.46, 0.95), (-0.46, 0.95)), "light"),
        Part((*_round(0, 0.08, 1.0, 1.0, 180, 360), (1.0, 0.2), (-1.0, 0.2))),
    ),
}
