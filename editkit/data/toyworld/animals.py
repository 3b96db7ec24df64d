"""Animal heads: cats, dogs and foxes that share pose, size, fur, eyes, collar and background.

The kind is one factor among others, so the same head as another kind is the exact answer to a translation between domains of
which only unpaired pictures are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from editkit.data.toyworld.canvas import Canvas, Colour, Point, blend, curve, shade
from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.faces import BACKGROUNDS
from editkit.data.toyworld.samples import Domain, Sample, seed
from editkit.errors import UsageError, suggestion

PARTS = ("background", "fur", "ears", "muzzle", "eyes", "nose", "mouth", "collar")
BACKGROUND, FUR, EARS, MUZZLE, EYES, NOSE, MOUTH, COLLAR = range(len(PARTS))

KINDS = ("cat", "dog", "fox")
FURS: dict[str, Colour] = {
    "black": (62, 58, 66),
    "grey": (142, 146, 156),
    "brown": (128, 84, 52),
    "orange": (226, 130, 54),
    "cream": (236, 214, 172),
}
EYE_COLOURS: dict[str, Colour] = {"amber": (230, 164, 32), "green": (84, 168, 76), "blue": (72, 132, 226)}
COLLARS: dict[str, Colour] = {"red": (206, 48, 58), "yellow": (238, 204, 54), "green": (46, 146, 84), "purple": (128, 62, 176)}
WHITE: Colour = (250, 248, 244)
DARK: Colour = (24, 20, 26)
PINK: Colour = (226, 128, 140)


@dataclass(frozen=True)
class Animal:
    """Everything that decides an animal's head. Lengths are fractions of the image side.

    Attributes:
        kind: cat, dog or fox.
        fur, eye_colour, collar, background: names of colours.
        x, y: middle of the head.
        size: half of its width, about.
        tilt: radians, clockwise.
        gaze: where it looks, -1 (left) to 1; not a measured factor, nor is
        tint: brightness of the background.
    """

    kind: str = "cat"
    fur: str = "grey"
    eye_colour: str = "amber"
    collar: str = "red"
    background: str = "grey"
    x: float = 0.5
    y: float = 0.51
    size: float = 0.28
    tilt: float = 0.0
    gaze: float = 0.0
    tint: float = 1.0


CATEGORICAL: dict[str, tuple] = {
    "kind": KINDS,
    "fur": tuple(FURS),
    "eye_colour": tuple(EYE_COLOURS),
    "collar": tuple(COLLARS),
    "background": tuple(BACKGROUNDS),
}
CONTINUOUS: dict[str, tuple[float, float]] = {"x": (0.44, 0.56), "y": (0.48, 0.54), "size": (0.24, 0.32), "tilt": (-0.28, 0.28)}
HELD_OUT: tuple[dict[str, object], ...] = ({"fur": "orange", "background": "mint"}, {"collar": "yellow", "fur": "black"})


def held_out(animal: Animal) -> bool:
    """Whether the animal shows one of the combinations that are kept out of train, validation and test."""
    return any(all(getattr(animal, name) == value for name, value in rule.items()) for rule in HELD_OUT)


def draw_animal(rng: np.random.Generator, kind: str) -> Animal:
    """Draw an animal of a kind at random; its factors do not depend on the kind or on each other."""
    named = {name: str(rng.choice(values)) for name, values in CATEGORICAL.items() if name != "kind"}
    lengths = {name: float(rng.uniform(*span)) for name, span in CONTINUOUS.items()}
    return Animal(kind, **named, **lengths, gaze=float(rng.uniform(-1, 1)), tint=float(rng.uniform(0.94, 1.06)))


def animal_at(split: str, index: int, kind: str) -> Animal:
    """Return an animal of a split; those of one index and different kinds have nothing to do with each other.

    Raises:
        UsageError: an unknown split or kind.
        ValueError: a negative index.
    """
    if kind not in KINDS:
        raise UsageError(f"the toy world has no {kind!r}.{suggestion(kind, KINDS)} There are: {', '.join(KINDS)}")
    rng = np.random.default_rng(seed(split, index, KINDS.index(kind)))
    animal = draw_animal(rng, kind)
    while held_out(animal) != (split == "heldout"):
        animal = draw_animal(rng, kind)
    return animal


def animal_named(key: str) -> Animal:
    """Return the toy animal of an item's key, such as "animals/train/cat/000012"."""
    _, split, kind, number = key.split("/")
    return animal_at(split, int(number), kind)


def translated(animal: Animal, kind: str) -> Animal:
    """Return the counterfactual: the same head as another kind."""
    return replace(animal, kind=kind)


def measured(animal: Animal) -> dict[str, object]:
    """Return the measured factors of an animal; all of them can be seen."""
    return {name: getattr(animal, name) for name in (*CATEGORICAL, *CONTINUOUS)}


def caption(animal: Animal) -> Caption:
    """Return a text that says what an animal looks like, with its claims."""
    text = f"{'an' if animal.fur == 'orange' else 'a'} {animal.fur} {animal.kind} with a {animal.collar} collar"
    return Caption(text, {name: (getattr(animal, name),) for name in ("kind", "fur", "collar")})


def sample_at(split: str, index: int, size: int = 64) -> Sample:
    """Render an animal of a split, the kinds in turn, with its caption, factors and part labels."""
    number, kind = divmod(index, len(KINDS))
    animal = animal_at(split, number, KINDS[kind])
    image, labels = render(animal, size, labels=True)
    assert labels is not None
    shown = dict.fromkeys((*CATEGORICAL, *CONTINUOUS), True)
    return Sample(f"animals/{split}/{index:06d}", image, caption(animal), measured(animal), shown, labels, animal)


DOMAIN = Domain("animals", PARTS, sample_at)


def render(animal: Animal, size: int = 64, *, labels: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Render an animal.

    Args:
        animal: the factors.
        size: side in pixels.
        labels: also return the part labels (indices into PARTS).

    Returns:
        uint8 HWC RGB picture, and uint8 HW labels or None.
    """
    canvas = Canvas(size, shade(BACKGROUNDS[animal.background], animal.tint), labels=labels)
    pen = Pen(canvas, animal)
    pen.ellipse((0, 2.0), (0.78, 0.95), shade(pen.fur, 0.86), FUR)
    pen.line([(-0.62, 1.18), (0, 1.3), (0.62, 1.18)], 0.2, COLLARS[animal.collar], COLLAR)
    {"cat": _cat, "dog": _dog, "fox": _fox}[animal.kind](pen)
    return canvas.image(), canvas.label_map() if labels else None


class Pen:
    """Draws on a canvas in the head's own coordinates: (0, 0) is its middle, 1 half of its width, y points to the chin."""

    def __init__(self, canvas: Canvas, animal: Animal):
        self.canvas, self.animal = canvas, animal
        self.cosine, self.sine = float(np.cos(animal.tilt)), float(np.sin(animal.tilt))
        self.fur = FURS[animal.fur]
        self.pale = blend(self.fur, WHITE, 0.68)
        self.deep = shade(self.fur, 0.62)
        self.iris = EYE_COLOURS[animal.eye_colour]

    def place(self, point: Point) -> Point:
        u, v, size = point[0], point[1], self.animal.size
        return (
            self.animal.x + size * (u * self.cosine - v * self.sine),
            self.animal.y + size * (u * self.sine + v * self.cosine),
        )

    def polygon(self, points: Sequence[Point], colour: Colour, label: int) -> None:
        self.canvas.polygon([self.place(point) for point in points], colour, label)

    def both(self, points: Sequence[Point], colour: Colour, label: int) -> None:
        """Fill a polygon and its mirror image."""
        self.polygon(points, colour, label)
        self.polygon([(-u, v) for u, v in points], colour, label)

    def ellipse(self, centre: Point, radius: Point, colour: Colour, label: int, turn: float = 0.0) -> None:
        """Fill an ellipse, turned by some radians."""
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        along, across = radius[0] * np.cos(angles), radius[1] * np.sin(angles)
        u, v = along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)
        self.polygon([(centre[0] + float(a), centre[1] + float(b)) for a, b in zip(u, v, strict=True)], colour, label)

    def line(self, points: Sequence[Point], width: float, colour: Colour, label: int) -> None:
        self.canvas.line([self.place(point) for point in points], width * self.animal.size, colour, label)

    def eye(self, side: int, centre: Point, radius: Point, pupil: Point, turn: float = 0.0) -> None:
        """Draw an eye; its pupil follows the gaze."""
        middle = (side * centre[0], centre[1])
        self.ellipse(middle, (radius[0] + 0.05, radius[1] + 0.05), DARK, EYES, side * turn)
        self.ellipse(middle, radius, self.iris, EYES, side * turn)
        look = 0.4 * (radius[0] - pupil[0]) * self.animal.gaze
        self.ellipse((middle[0] + look, middle[1]), pupil, DARK, EYES)


def _cat(pen: Pen) -> None:
    pen.both([(-0.98, -0.1), (-0.9, -1.3), (-0.18, -0.78)], pen.fur, EARS)
    pen.both([(-0.82, -0.45), (-0.8, -1.05), (-0.42, -0.75)], PINK, EARS)
    pen.ellipse((0, 0), (1.0, 0.88), pen.fur, FUR)
    for u in (-0.24, 0.0, 0.24):
        pen.line([(u, -0.82 + abs(u) * 0.2), (u * 0.8, -0.5)], 0.1, pen.deep, FUR)
    for side in (-1, 1):
        pen.ellipse((side * 0.22, 0.42), (0.3, 0.24), pen.pale, MUZZLE)
        for rise in (-0.1, 0.08):
            pen.line([(side * 0.42, 0.42), (side * 1.14, 0.42 + rise)], 0.045, pen.pale, FUR)
        pen.eye(side, (0.45, -0.08), (0.22, 0.2), (0.07, 0.18))
    pen.polygon([(-0.13, 0.18), (0.13, 0.18), (0, 0.34)], PINK, NOSE)
    for side in (-1, 1):
        pen.line(curve((0, 0.4), (side * 0.24, 0.46), 0.08), 0.05, DARK, MOUTH)


def _dog(pen: Pen) -> None:
    pen.ellipse((0, 0), (0.84, 0.98), pen.fur, FUR)
    pen.ellipse((-0.38, -0.2), (0.34, 0.4), pen.deep, FUR)
    for side in (-1, 1):
        pen.ellipse((side * 0.92, 0.02), (0.3, 0.76), pen.deep, EARS, turn=side * -0.22)
    pen.ellipse((0, 0.5), (0.5, 0.46), pen.pale, MUZZLE)
    for side in (-1, 1):
        pen.eye(side, (0.38, -0.2), (0.15, 0.16), (0.08, 0.09))
    pen.ellipse((0, 0.86), (0.16, 0.24), PINK, MOUTH)
    pen.line([(0, 0.4), (0, 0.64)], 0.06, DARK, MOUTH)
    pen.line(curve((-0.3, 0.62), (0.3, 0.62), 0.1), 0.06, DARK, MOUTH)
    pen.ellipse((0, 0.3), (0.22, 0.16), DARK, NOSE)


def _fox(pen: Pen) -> None:
    pen.both([(-0.92, -0.15), (-1.02, -1.5), (-0.2, -0.62)], pen.fur, EARS)
    pen.both([(-0.99, -1.05), (-1.02, -1.5), (-0.72, -1.18)], DARK, EARS)
    pen.both([(-0.8, -0.5), (-0.84, -1.05), (-0.46, -0.68)], pen.pale, EARS)
    half = [(0.0, -0.72), (-0.7, -0.6), (-1.22, 0.24), (-0.42, 0.66), (-0.16, 1.1), (0.0, 1.16)]
    pen.both(half, pen.fur, FUR)
    pen.both([(-1.22, 0.24), (-0.55, 0.1), (-0.14, 0.34), (0.0, 1.16), (-0.16, 1.1), (-0.42, 0.66)], WHITE, MUZZLE)
    pen.polygon([(-0.2, 0.3), (0.2, 0.3), (0.09, 0.95), (-0.09, 0.95)], pen.fur, MUZZLE)
    for side in (-1, 1):
        pen.eye(side, (0.44, -0.06), (0.2, 0.11), (0.07, 0.1), turn=-0.35)
    pen.ellipse((0, 1.02), (0.15, 0.12), DARK, NOSE)
