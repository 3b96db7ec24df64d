"""An anti-aliased canvas that draws a picture and its label map with the same strokes.

Coordinates are fractions of the image side, magnified about its middle: with zoom 1, (0, 0) is the top left corner and
(1, 1) the bottom right; with zoom 1.2 everything is drawn 1.2 times as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OVERSAMPLING = 4

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """Draws at four times the size and reduces with Lanczos; labels are reduced by the nearest pixel.

    Args:
        size: side of the finished image in pixels.
        background: colour that fills the canvas, with label 0.
        zoom: magnification of the coordinates about the middle of the image.
        focus: the point that lies in the middle of the image.
        labels: whether to keep a label map beside the picture.
    """

    def __init__(self, size: int, background: Colour, *, zoom: float = 1.0, focus: Point = (0.5, 0.5), labels: bool = False):
        self.size = size
        side = size * OVERSAMPLING
        self.scale = side * zoom
        self.offset = (side / 2 - self.scale * focus[0], side / 2 - self.scale * focus[1])
        self._image = Image.new("RGB", (side, side), background)
        self._draw = ImageDraw.Draw(self._image)
        self._labels = Image.new("L", (side, side), 0) if labels else None
        self._label_draw = ImageDraw.Draw(self._labels) if self._labels is not None else None

    def _place(self, point: Point) -> Point:
        return self.offset[0] + self.scale * point[0], self.offset[1] + self.scale * point[1]

    def _box(self, top_left: Point, bottom_right: Point) -> tuple[float, float, float, float]:
        return (*self._place(top_left), *self._place(bottom_right))

    def ellipse(self, centre: Point, radius: Point, colour: Colour, label: int) -> None:
        """Fill an ellipse with half axes `radius`."""
        box = self._box((centre[0] - radius[0], centre[1] - radius[1]), (centre[0] + radius[0], centre[1] + radius[1]))
        self._draw.ellipse(box, fill=colour)
        if self._label_draw is not None:
            self._label_draw.ellipse(box, fill=label)

    def ring(self, centre: Point, radius: Point, width: float, colour: Colour, label: int) -> None:
        """Draw the outline of an ellipse, `width` thick."""
        box = self._box((centre[0] - radius[0], centre[1] - radius[1]), (centre[0] + radius[0], centre[1] + radius[1]))
        stroke = max(1, round(self.scale * width))
        self._draw.ellipse(box, outline=colour, width=stroke)
        if self._label_draw is not None:
            self._label_draw.ellipse(box, outline=label, width=stroke)

    def rounded(self, top_left: Point, bottom_right: Point, radius: float, colour: Colour, label: int) -> None:
        """Fill a rectangle with rounded corners."""
        box = self._box(top_left, bottom_right)
        self._draw.rounded_rectangle(box, radius=self.scale * radius, fill=colour)
        if self._label_draw is not None:
            self._label_draw.rounded_rectangle(box, radius=self.scale * radius, fill=label)

    def polygon(self, points: Sequence[Point], colour: Colour, label: int) -> None:
        """Fill a polygon."""
        scaled = [self._place(point) for point in points]
        self._draw.polygon(scaled, fill=colour)
        if self._label_draw is not None:
            self._label_draw.polygon(scaled, fill=label)

    def line(self, points: Sequence[Point], width: float, colour: Colour, label: int) -> None:
        """Draw a polyline with round ends."""
        scaled = [self._place(point) for point in points]
        stroke = max(1, round(self.scale * width))
        half = stroke / 2
        draws = [(self._draw, colour)] if self._label_draw is None else [(self._draw, colour), (self._label_draw, label)]
        for draw, ink in draws:
            draw.line(scaled, fill=ink, width=stroke, joint="curve")
            for x, y in (scaled[0], scaled[-1]):
                draw.ellipse([x - half, y - half, x + half, y + half], fill=ink)

    def paste(self, centre: Point, ink: Image.Image | Colour, mask: Image.Image, label: int | None) -> None:
        """Put a small picture, or one colour, about a point through a mask; both have the canvas's fine pixels.

        Args:
            mask: 0 to 255, how much of the ink is seen.
            label: what the mask covers, or None to leave the labels as they are.
        """
        x, y = self._place(centre)
        corner = (round(x) - mask.width // 2, round(y) - mask.height // 2)
        self._image.paste(ink, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
        if self._labels is not None and label is not None:
            self._labels.paste(label, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)

    def image(self) -> np.ndarray:
        """Return the picture as uint8 HWC RGB."""
        return np.asarray(self._image.resize((self.size, self.size), Image.Resampling.LANCZOS, reducing_gap=2.0))

    def label_map(self) -> np.ndarray:
        """Return the labels as uint8 HW. Raises ValueError when the canvas keeps none."""
        if self._labels is None:
            raise ValueError("this canvas was made without labels")
        return np.asarray(self._labels.resize((self.size, self.size), Image.Resampling.NEAREST))

    def covered(self) -> np.ndarray:
        """Return how much of each pixel has a label other than 0: uint8 HW, 0 to 255. Raises ValueError without labels."""
        if self._labels is None:
            raise ValueError("this canvas was made without labels")
        fine = self._labels.point(lambda label: 255 if label else 0)
        return np.asarray(fine.resize((self.size, self.size), Image.Resampling.BOX))

    def borders(self) -> np.ndarray:
        """Return the borders between labels as lines: uint8 HW, black on white. Raises ValueError without labels."""
        if self._labels is None:
            raise ValueError("this canvas was made without labels")
        fine = np.asarray(self._labels)
        lines = np.zeros(fine.shape, dtype=bool)
        lines[1:] |= fine[1:] != fine[:-1]
        lines[:, 1:] |= fine[:, 1:] != fine[:, :-1]
        thick = Image.fromarray(np.where(lines, 0, 255).astype(np.uint8)).filter(ImageFilter.MinFilter(3))
        return np.asarray(thick.resize((self.size, self.size), Image.Resampling.BOX))


def curve(start: Point, end: Point, bend: float, points: int = 9) -> list[Point]:
    """Return points of a parabola from start to end whose middle lies `bend` below the chord."""
    steps = (k / (points - 1) for k in range(points))
    return [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1]) + bend * 4 * s * (1 - s)) for s in steps]


def blend(a: Colour, b: Colour, amount: float) -> Colour:
    """Mix two colours: 0 gives a, 1 gives b."""
    amount = min(max(amount, 0.0), 1.0)
    return tuple(round(x + amount * (y - x)) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shade(colour: Colour, factor: float) -> Colour:
    """Scale a colour's brightness."""
    return tuple(min(255, max(0, math.floor(v * factor + 0.5))) for v in colour)  # type: ignore[return-value]
