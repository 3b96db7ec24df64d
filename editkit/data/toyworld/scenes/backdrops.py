"""What stands behind the objects: six places by day and by night, in summer and in winter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from editkit.data.toyworld.canvas import Canvas, Colour, Point, shade
from editkit.data.toyworld.scenes.factors import Scene

STUFF = (
    *("sky", "lamp", "cloud", "mountain", "tree", "building", "water", "grass", "sand", "snow", "road", "rock", "floor", "wall"),
    "window",
)
SKY, LAMP, CLOUD, MOUNTAIN, TREE, BUILDING, WATER, GRASS, SAND, SNOW, ROAD, ROCK, FLOOR, WALL, WINDOW = range(len(STUFF))

# Pale by day and dark by night, so that the objects' full colours stand out everywhere.
INKS: dict[str, Colour] = {
    "sky": (196, 222, 242),
    "winter sky": (214, 218, 226),
    "cloud": (244, 247, 250),
    "sun": (255, 246, 196),
    "snow": (240, 243, 248),
    "grass": (186, 210, 148),
    "hill": (162, 192, 136),
    "leaves": (112, 152, 104),
    "trunk": (134, 110, 92),
    "sand": (236, 220, 182),
    "water": (150, 188, 208),
    "ice": (202, 216, 226),
    "peak": (164, 164, 174),
    "rock": (200, 194, 184),
    "road": (184, 184, 186),
    "kerb": (212, 210, 204),
    "brick": (200, 168, 152),
    "plaster": (214, 202, 184),
    "roof": (146, 122, 118),
    "pane": (150, 158, 168),
    "wall": (224, 214, 222),
    "floor": (198, 176, 154),
    "frame": (246, 244, 240),
}
NIGHT = (0.3, 0.31, 0.42)  # what the night leaves of red, green and blue
INDOORS_NIGHT = (0.46, 0.43, 0.47)
SNOW_NIGHT = (0.46, 0.48, 0.6)  # snow keeps more
MOON: Colour = (236, 236, 222)
LIT: Colour = (226, 200, 130)  # a lit window
NIGHT_SKY: Colour = (26, 30, 62)


@dataclass(frozen=True)
class Backdrop:
    """A canvas and the inks of a scene's time and season."""

    canvas: Canvas
    scene: Scene

    @property
    def winter(self) -> bool:
        return self.scene.season == "winter"

    @property
    def night(self) -> bool:
        return self.scene.time == "night"

    def ink(self, name: str) -> Colour:
        """Return a named colour as the hour and the exposure show it."""
        colour = INKS[name]
        if self.night:
            dim = INDOORS_NIGHT if self.scene.place == "room" else SNOW_NIGHT if name == "snow" else NIGHT
            colour = tuple(round(value * part) for value, part in zip(colour, dim, strict=True))  # type: ignore[assignment]
        return shade(colour, self.scene.exposure)

    def spot(self, number: int) -> float:
        """Return where a piece of scenery stands, 0 to 1: spread out, and shifted as the scene's layout says."""
        return (self.scene.layout + 0.618 * number) % 1.0

    def band(self, top: float, colour: Colour, label: int) -> None:
        """Fill the picture from a height downwards."""
        self.canvas.polygon([(-1, top), (2, top), (2, 2), (-1, 2)], colour, label)


def sky_colour(scene: Scene) -> Colour:
    """Return the colour of the sky of a scene."""
    if scene.time == "night":
        return NIGHT_SKY
    return shade(INKS["winter sky" if scene.season == "winter" else "sky"], scene.exposure)


def draw_backdrop(canvas: Canvas, scene: Scene) -> None:
    """Draw the place of a scene on a canvas that is filled with the colour of its sky."""
    backdrop = Backdrop(canvas, scene)
    if scene.place != "room":
        _lamp(backdrop)
    PLACE[scene.place](backdrop)


def _lamp(b: Backdrop) -> None:
    """Draw the sun, or the moon with some stars, on the side that the light comes from."""
    x = 0.5 + 0.36 * b.scene.light
    if not b.night:
        b.canvas.ellipse((x, 0.13), (0.075, 0.075), shade(INKS["sun"], b.scene.exposure), LAMP)
        return
    for k in range(9):
        b.canvas.ellipse((b.spot(k), 0.03 + 0.04 * (k * 5 % 9)), (0.008, 0.008), (170, 174, 196), SKY)
    b.canvas.ellipse((x, 0.13), (0.065, 0.065), MOON, LAMP)


def _clouds(b: Backdrop, heights: tuple[float, ...], size: float) -> None:
    for k, y in enumerate(heights):
        x = b.spot(k) * 1.1 - 0.05
        for dx, r in ((-0.9, 0.55), (0.0, 0.8), (0.9, 0.6)):
            b.canvas.ellipse(
                (x + dx * size, y - (r - 0.6) * size * 0.5), (r * size * 1.1, r * size * 0.62), b.ink("cloud"), CLOUD
            )


def _tree(b: Backdrop, x: float, foot: float, height: float) -> None:
    """Draw a fir, white in winter."""
    b.canvas.polygon(
        [(x - 0.012, foot - 0.1), (x + 0.012, foot - 0.1), (x + 0.012, foot), (x - 0.012, foot)], b.ink("trunk"), TREE
    )
    leaves = b.ink("snow" if b.winter else "leaves")
    if b.winter:
        leaves = shade(leaves, 0.86)
    for k in range(3):
        top, width = foot - height + 0.2 * k * height, height * (0.2 + 0.08 * k)
        b.canvas.polygon([(x, top), (x + width, top + height * 0.44), (x - width, top + height * 0.44)], leaves, TREE)


def _meadow(b: Backdrop) -> None:
    hill, ground = ("snow", "snow") if b.winter else ("hill", "grass")
    label = SNOW if b.winter else GRASS
    _clouds(b, (0.12, 0.22), 0.07)
    for k in range(2):
        b.canvas.ellipse((b.spot(k + 4), 0.62), (0.5, 0.24), shade(b.ink(hill), 0.95), label)
    for k in range(5):
        _tree(b, b.spot(k), 0.5 + 0.01 * (k % 3), 0.2 + 0.03 * (k % 2))
    b.band(0.5, b.ink(ground), label)


def _beach(b: Backdrop) -> None:
    _clouds(b, (0.14, 0.24), 0.06)
    b.band(0.36, b.ink("ice" if b.winter else "water"), WATER)
    for k in range(6):
        x, y = b.spot(k), 0.4 + 0.022 * (k % 4)
        b.canvas.line([(x - 0.06, y), (x + 0.06, y)], 0.008, shade(b.ink("ice" if b.winter else "water"), 1.1), WATER)
    shore = [(x / 16, 0.525 + 0.012 * math.sin(x * 1.1 + 6 * b.scene.layout)) for x in range(-16, 33)]
    ink, label = ("snow", SNOW) if b.winter else ("sand", SAND)
    b.canvas.polygon([*shore, (2, 2), (-1, 2)], b.ink(ink), label)


def _mountains(b: Backdrop) -> None:
    for k in range(3):
        x, top, half = b.spot(k) * 1.2 - 0.1, 0.16 + 0.07 * k, 0.42 - 0.06 * k
        slope = half / (0.56 - top)
        b.canvas.polygon([(x, top), (x + half, 0.56), (x - half, 0.56)], shade(b.ink("peak"), 1 - 0.06 * k), MOUNTAIN)
        cap = 0.24 if b.winter else 0.08
        teeth: list[Point] = [(x + slope * cap * (1 - j / 2), top + cap * (0.8 if j % 2 else 1.0)) for j in range(5)]
        b.canvas.polygon([(x, top), *teeth], b.ink("snow"), SNOW)
    ink, label = ("snow", SNOW) if b.winter else ("rock", ROCK)
    b.band(0.53, b.ink(ink), label)


def _street(b: Backdrop) -> None:
    for k in range(5):
        x, top, width = k * 0.24 - 0.12 + 0.2 * (b.scene.layout % 0.5), 0.2 + 0.06 * (k * 2 % 3), 0.22
        b.canvas.polygon(
            [(x, top), (x + width, top), (x + width, 0.56), (x, 0.56)], b.ink("brick" if k % 2 else "plaster"), BUILDING
        )
        roof = [(x - 0.015, top), (x + width / 2, top - 0.11), (x + width + 0.015, top)]
        b.canvas.polygon(roof, b.ink("snow" if b.winter else "roof"), SNOW if b.winter else BUILDING)
        for column in (0.055, 0.165):
            for y in (top + 0.06, top + 0.17):
                box = ((x + column - 0.022, y), (x + column + 0.022, y + 0.06))
                b.canvas.rounded(*box, 0.0, LIT if b.night and (k + round(column * 10)) % 2 else b.ink("pane"), BUILDING)
    b.band(0.53, b.ink("snow" if b.winter else "kerb"), SNOW if b.winter else ROAD)
    b.band(0.6, shade(b.ink("snow"), 0.93) if b.winter else b.ink("road"), SNOW if b.winter else ROAD)


def _room(b: Backdrop) -> None:
    b.band(-1, b.ink("wall"), WALL)
    left = 0.1 + 0.5 * b.scene.layout
    b.canvas.rounded((left, 0.07), (left + 0.3, 0.4), 0.01, b.ink("frame"), WINDOW)
    outside = NIGHT_SKY if b.night else shade(INKS["sky"], b.scene.exposure)
    for column in (0.02, 0.16):
        for row in (0.09, 0.245):
            b.canvas.rounded((left + column, row), (left + column + 0.12, row + 0.135), 0.0, outside, WINDOW)
    b.band(0.56, shade(b.ink("frame"), 0.94), WALL)
    b.band(0.59, b.ink("floor"), FLOOR)
    for k in range(4):
        y = 0.64 + 0.1 * k
        b.canvas.line([(-1, y), (2, y)], 0.006, shade(b.ink("floor"), 0.92), FLOOR)


def _sky(b: Backdrop) -> None:
    _clouds(b, (0.2, 0.42, 0.62, 0.86), 0.13)


PLACE: dict[str, Callable[[Backdrop], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "mountains": _mountains,
    "street": _street,
    "room": _room,
    "sky": _sky,
}
