"""Scenes as pictures, with everything that is known of each pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from editkit.data.toyworld.canvas import Canvas, Colour, Point, blend, shade
from editkit.data.toyworld.scenes.backdrops import STUFF, draw_backdrop, sky_colour
from editkit.data.toyworld.scenes.factors import COLOURS, Scene, Thing
from editkit.data.toyworld.scenes.shapes import SHAPES
from editkit.data.toyworld.styles import restyled

# What a label means: stuff behind the objects, then the shapes.
PARTS = (*STUFF, *SHAPES)
REACH = 1.2  # a shape's farthest point from its centre, in sizes
OUTLINE = 0.011  # of the image side
SHADOW_FLATNESS, SHADOW_DEPTH = 0.2, 90  # of 255
BLUR = 4  # pixels that an edge reaches when the fine canvas is reduced
DUSK: Colour = (24, 26, 84)  # what the night mixes into an object's colours
LIGHT: Colour = (250, 244, 226)
DARK: Colour = (48, 40, 52)


@dataclass(frozen=True)
class Window:
    """The part of a scene that a picture shows: a square about `focus`, 1/`zoom` of the scene wide."""

    focus: Point = (0.5, 0.5)
    zoom: float = 1.0


WHOLE = Window()


@dataclass(frozen=True)
class Picture:
    """A rendered scene of N objects.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W), indices into PARTS.
        instances: uint8 (H, W), 0 behind the objects, else 1 + the object's place in `scene.things`; with `labels` the
            panoptic map.
        whole: bool (N, H, W), each object as if nothing stood before it (amodal masks).
        canvas: what it was drawn on, fine, with labels.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    whole: np.ndarray
    canvas: Canvas

    @property
    def sketch(self) -> np.ndarray:
        """The borders of everything, black on white: uint8 (H, W). Drawn when asked for, which costs as much as the rest."""
        return self.canvas.borders()

    @property
    def seen(self) -> np.ndarray:
        """The visible masks: bool (N, H, W)."""
        return self.instances[None] == np.arange(1, len(self.whole) + 1, dtype=np.uint8)[:, None, None]


def render(scene: Scene, size: int = 64, window: Window = WHOLE) -> np.ndarray:
    """Render a scene as uint8 (size, size, 3) RGB."""
    return restyled(_painted(scene, size, window, labels=False).image(), scene.style)


def picture(scene: Scene, size: int = 64, window: Window = WHOLE) -> Picture:
    """Render a scene with its labels, masks and sketch."""
    canvas = _painted(scene, size, window, labels=True)
    numbers = canvas.label_map()
    instances = np.where(numbers < len(STUFF), 0, numbers - len(STUFF) + 1).astype(np.uint8)
    parts = [*range(len(STUFF)), *(PARTS.index(thing.shape) for thing in scene.things)]
    whole = [silhouette(thing, size, window) for thing in scene.things]
    return Picture(
        image=restyled(canvas.image(), scene.style),
        labels=np.array(parts, dtype=np.uint8)[numbers],
        instances=instances,
        whole=np.stack(whole) if whole else np.zeros((0, size, size), dtype=bool),
        canvas=canvas,
    )


def silhouette(thing: Thing, size: int, window: Window = WHOLE) -> np.ndarray:
    """Return the mask of an object that nothing hides: bool (size, size)."""
    canvas = _canvas(size, window, (0, 0, 0), labels=True)
    canvas.paste((thing.x, thing.y), (0, 0, 0), _cutout(thing, canvas.scale), 1)
    return canvas.label_map() > 0


def footprint(thing: Thing, scene: Scene, size: int) -> np.ndarray:
    """Return every pixel that an object of a scene may touch, its shadow and blurred edges included: bool (size, size)."""
    canvas = _canvas(size, WHOLE, (0, 0, 0), labels=True)
    canvas.paste((thing.x, thing.y), (0, 0, 0), _cutout(thing, canvas.scale), 1)
    if scene.place != "sky":
        centre, half = _shadow(thing, scene)
        canvas.ellipse(centre, half, (0, 0, 0), 1)
    return grown(canvas.label_map() > 0, BLUR)


def surroundings(scene: Scene, size: int) -> np.ndarray:
    """Return every pixel that shows something of what is behind the objects, and one more: bool (size, size)."""
    canvas = _canvas(size, WHOLE, (0, 0, 0), labels=True)
    for thing in scene.things:
        canvas.paste((thing.x, thing.y), (0, 0, 0), _cutout(thing, canvas.scale), 1)
    return grown(canvas.covered() < 255, 1)


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Grow a bool (H, W) mask by some pixels to all sides."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, by), 2 * by + 1, axis=0).any(axis=-1)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(windows, 2 * by + 1, axis=1).any(axis=-1))


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box of a bool (H, W) mask: left, top, right, bottom, the last two exclusive; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _canvas(size: int, window: Window, colour: Colour, *, labels: bool) -> Canvas:
    return Canvas(size, colour, zoom=window.zoom, focus=window.focus, labels=labels)


def _painted(scene: Scene, size: int, window: Window, *, labels: bool) -> Canvas:
    canvas = _canvas(size, window, sky_colour(scene), labels=labels)
    draw_backdrop(canvas, scene)
    if scene.place != "sky":
        for thing in scene.things:
            _draw_shadow(canvas, thing, scene)
    for number, thing in enumerate(scene.things):
        mask = _cutout(thing, canvas.scale)
        canvas.paste((thing.x, thing.y), _stamp(thing, scene, canvas.scale, mask), mask, len(STUFF) + number)
    return canvas


def _shadow(thing: Thing, scene: Scene) -> tuple[Point, Point]:
    """Return centre and half axes of the shadow on the ground."""
    centre = (thing.x - 0.45 * scene.light * thing.size, thing.feet - 0.02)
    return centre, (0.95 * thing.size, SHADOW_FLATNESS * thing.size)


def _draw_shadow(canvas: Canvas, thing: Thing, scene: Scene) -> None:
    centre, half = _shadow(thing, scene)
    width, height = (2 * round(length * canvas.scale) + 2 for length in half)
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, width - 1, height - 1), fill=SHADOW_DEPTH)
    canvas.paste(centre, (20, 22, 40), mask, None)


def _outlines(thing: Thing, scale: float, shift: Point = (0.0, 0.0)) -> Iterator[tuple[list[Point], str]]:
    """Yield the polygons of an object in the pixels of its stamp, with their inks."""
    middle = _side(thing, scale) / 2
    size, angle = thing.size * scale, math.radians(thing.angle)
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    dx, dy = middle + size * shift[0], middle + size * shift[1]
    for part in SHAPES[thing.shape]:
        yield [(dx + cos * x - sin * y, dy + sin * x + cos * y) for x, y in part.points], part.ink


def _side(thing: Thing, scale: float) -> int:
    return 2 * math.ceil(thing.size * scale * REACH) + 2


def _cutout(thing: Thing, scale: float) -> Image.Image:
    """Return the object's mask in fine pixels: "L", 0 or 255."""
    side = _side(thing, scale)
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for points, ink in _outlines(thing, scale):
        draw.polygon(points, fill=0 if ink == "hole" else 255)
    return mask


def _stamp(thing: Thing, scene: Scene, scale: float, mask: Image.Image) -> Image.Image:
    """Draw an object: lit side and shaded side, texture, details, outline."""

    def tone(colour: Colour) -> Colour:
        return blend(colour, DUSK, 0.14) if scene.time == "night" else shade(colour, scene.exposure)

    colour = COLOURS[thing.colour]
    body = Image.new("RGB", mask.size, tone(shade(colour, 0.78)))
    draw = ImageDraw.Draw(body)
    for points, ink in _outlines(thing, scale, (0.16 * scene.light, -0.12)):
        if ink == "body":
            draw.polygon(points, fill=tone(colour))
    for points in _texture(thing, scale):
        draw.polygon(points, fill=tone(blend(colour, (255, 255, 255), 0.75)))
    for points, ink in _outlines(thing, scale):
        if ink in ("light", "dark"):
            draw.polygon(points, fill=tone(LIGHT if ink == "light" else DARK))
    outline = Image.new("RGB", mask.size, tone(shade(colour, 0.42)))
    return Image.composite(body, outline, _eroded(mask, max(1, round(OUTLINE * scale))))


def _texture(thing: Thing, scale: float) -> Iterator[list[Point]]:
    """Yield the polygons of the texture in the pixels of the stamp."""
    middle, size, angle = _side(thing, scale) / 2, thing.size * scale, math.radians(thing.angle)
    cos, sin = size * math.cos(angle), size * math.sin(angle)
    for polygon in PATTERNS[thing.texture]:
        yield [(middle + cos * x - sin * y, middle + sin * x + cos * y) for x, y in polygon]


def _stripes() -> Iterator[list[Point]]:
    for k in range(-2, 3):
        x = 0.5 * k
        yield [(x - 0.1 + 0.5, -1.2), (x + 0.12 + 0.5, -1.2), (x + 0.12 - 0.5, 1.2), (x - 0.1 - 0.5, 1.2)]


def _dots() -> Iterator[list[Point]]:
    for row in range(-3, 4):
        for column in range(-3, 4):
            x, y = 0.5 * column + (0.25 if row % 2 else 0.0), 0.42 * row
            yield [(x + 0.145 * math.cos(math.pi * k / 6), y + 0.145 * math.sin(math.pi * k / 6)) for k in range(12)]


PATTERNS: dict[str, list[list[Point]]] = {"plain": [], "striped": list(_stripes()), "dotted": list(_dots())}


def _eroded(mask: Image.Image, by: int) -> Image.Image:
    thin = mask
    slant = round(by * 0.7)
    for dx, dy in ((by, 0), (-by, 0), (0, by), (0, -by), (slant, slant), (-slant, slant), (slant, -slant), (-slant, -slant)):
        thin = ImageChops.darker(thin, ImageChops.offset(mask, dx, dy))
    return thin
