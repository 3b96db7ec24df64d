"""Cartoon faces: the factors that describe one, how they are drawn at random, and how they are rendered.

A face is a pure function of its factors, so changing one factor and rendering again gives the exact answer to an edit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from editkit.data.toyworld.canvas import Canvas, Colour, blend, curve, shade

PARTS = ("background", "skin", "hair", "brows", "eyes", "nose", "mouth", "glasses", "clothes")
BACKGROUND, SKIN, HAIR, BROWS, EYES, NOSE, MOUTH, GLASSES, CLOTHES = range(len(PARTS))

SKINS: dict[str, Colour] = {
    "pale": (250, 218, 198),
    "light": (228, 180, 148),
    "tan": (196, 142, 104),
    "brown": (158, 108, 76),
    "dark": (118, 78, 54),
}
HAIRS: dict[str, Colour] = {
    "black": (34, 30, 36),
    "brown": (100, 62, 34),
    "blond": (228, 194, 98),
    "red": (184, 74, 32),
    "grey": (172, 172, 176),
}
EYES_COLOURS: dict[str, Colour] = {"brown": (86, 50, 24), "blue": (46, 98, 214), "green": (44, 142, 76)}
SHIRTS: dict[str, Colour] = {
    "red": (204, 62, 66),
    "orange": (224, 130, 48),
    "yellow": (226, 200, 66),
    "green": (66, 150, 82),
    "teal": (58, 148, 152),
    "blue": (60, 96, 190),
    "purple": (124, 62, 168),
    "white": (236, 236, 240),
}
BACKGROUNDS: dict[str, Colour] = {
    "pink": (224, 160, 190),
    "peach": (232, 186, 148),
    "olive": (176, 176, 112),
    "mint": (146, 212, 164),
    "cyan": (128, 196, 208),
    "blue": (126, 160, 218),
    "violet": (168, 134, 208),
    "grey": (186, 190, 196),
}
ZOOM = 1.15
GREY_FROM, GREY_TO = 52.0, 62.0  # hair turns grey between these ages
OLD, YOUNG = 60, 35  # captions call a face old from OLD on and young up to YOUNG


@dataclass(frozen=True)
class Face:
    """Everything that decides a face. Lengths are fractions of 1/ZOOM of the image side; `expression_amount` is 0 to 1."""

    skin: str = "light"
    face_width: float = 0.27  # half axis of the head
    face_height: float = 0.31
    hair_style: str = "short"
    hair_colour: str = "brown"  # before age turns it grey
    eye_colour: str = "brown"
    eye_spacing: float = 0.115  # from the middle line
    brow: str = "thin"
    shirt: str = "blue"
    background: str = "grey"
    x: float = 0.5
    y: float = 0.48
    tint: float = 1.0  # brightness of the background; not a measured factor
    expression: str = "neutral"
    expression_amount: float = 1.0
    age: float = 30.0
    glasses: bool = False
    beard: bool = False
    look: str = "feminine"

    @property
    def shown_hair(self) -> str:
        """The hair colour that can be seen: grey once age has turned most of it."""
        return "grey" if self.age >= (GREY_FROM + GREY_TO) / 2 else self.hair_colour


CATEGORICAL: dict[str, tuple] = {
    "skin": tuple(SKINS),
    "hair_style": ("bald", "short", "long"),
    "shown_hair": tuple(HAIRS),
    "eye_colour": tuple(EYES_COLOURS),
    "brow": ("thin", "thick"),
    "shirt": tuple(SHIRTS),
    "background": tuple(BACKGROUNDS),
    "expression": ("smiling", "neutral", "sad", "angry"),
    "glasses": (False, True),
    "beard": (False, True),
    "look": ("feminine", "masculine"),
}
CONTINUOUS: dict[str, tuple[float, float]] = {
    "face_width": (0.23, 0.31),
    "face_height": (0.28, 0.34),
    "eye_spacing": (0.09, 0.14),
    "x": (0.44, 0.56),
    "y": (0.455, 0.515),
    "age": (20.0, 80.0),
}
HELD_OUT: tuple[dict[str, object], ...] = (
    {"hair_colour": "red", "background": "mint"},
    {"shirt": "yellow", "skin": "dark"},
)


def visible(face: Face) -> dict[str, bool]:
    """Say for each measured factor whether it can be seen in the picture (hair colour needs hair)."""
    flags = dict.fromkeys((*CATEGORICAL, *CONTINUOUS), True)
    flags["shown_hair"] = face.hair_style != "bald" or face.beard
    return flags


def implied(factor: str) -> frozenset[str]:
    """Name the measured factors that an edit of `factor` may rightly change as well."""
    return {"age": frozenset({"age", "shown_hair"})}.get(factor, frozenset({factor}))


def held_out(face: Face) -> bool:
    """Whether the face shows one of the combinations that are kept out of train, validation and test."""
    return any(all(getattr(face, name) == value for name, value in rule.items()) for rule in HELD_OUT)


def draw_face(rng: np.random.Generator) -> Face:
    """Draw a face at random; factors are independent except that only masculine-looking faces wear beards."""
    look = str(rng.choice(["feminine", "masculine"]))
    long_hair = 0.65 if look == "feminine" else 0.2
    bald = 0.05 if look == "feminine" else 0.25
    age = CONTINUOUS["age"][0] + (CONTINUOUS["age"][1] - CONTINUOUS["age"][0]) * rng.random() ** 1.4
    return Face(
        skin=str(rng.choice(list(SKINS))),
        **{name: float(rng.uniform(*CONTINUOUS[name])) for name in ("face_width", "face_height", "eye_spacing", "x", "y")},
        age=float(age),
        hair_style=str(rng.choice(["bald", "short", "long"], p=[bald, 1 - bald - long_hair, long_hair])),
        hair_colour=str(rng.choice(["black", "brown", "blond", "red"])),
        eye_colour=str(rng.choice(list(EYES_COLOURS))),
        brow=str(rng.choice(["thin", "thick"])),
        shirt=str(rng.choice(list(SHIRTS))),
        background=str(rng.choice(list(BACKGROUNDS))),
        tint=float(rng.uniform(0.94, 1.06)),
        expression=str(rng.choice(CATEGORICAL["expression"])),
        expression_amount=float(rng.uniform(0.7, 1.0)),
        glasses=bool(rng.random() < 0.4),
        beard=look == "masculine" and bool(rng.random() < 0.4),
        look=look,
    )


def edited(face: Face, **changes: object) -> Face:
    """Return the counterfactual: the same face with the named factors changed and the expression at full amount.

    Raises:
        ValueError: a name that is no factor of a face.
    """
    known = {field.name for field in fields(Face)}
    unknown = set(changes) - known
    if unknown:
        raise ValueError(f"a face has no factor {sorted(unknown)[0]!r}; its factors are {', '.join(sorted(known))}")
    if "expression" in changes:
        changes.setdefault("expression_amount", 1.0)
    return replace(face, **changes)  # type: ignore[arg-type]


def render(face: Face, size: int = 64, *, labels: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Render a face.

    Args:
        face: the factors.
        size: side in pixels.
        labels: also return the part labels (indices into PARTS).

    Returns:
        uint8 HWC RGB picture, and uint8 HW labels or None.
    """
    canvas = Canvas(size, shade(BACKGROUNDS[face.background], face.tint), zoom=ZOOM, labels=labels)
    _body_and_back_hair(canvas, face)
    _head(canvas, face)
    _wrinkles(canvas, face)
    _beard(canvas, face)
    _mouth(canvas, face)
    _front_hair(canvas, face)
    _eyes(canvas, face)
    _brows(canvas, face)
    _glasses(canvas, face)
    return canvas.image(), canvas.label_map() if labels else None


def _hair_ink(face: Face) -> Colour:
    greyness = (face.age - GREY_FROM) / (GREY_TO - GREY_FROM)
    return blend(HAIRS[face.hair_colour], HAIRS["grey"], greyness)


def _oldness(face: Face) -> float:
    return min(max((face.age - 42.0) / 30.0, 0.0), 1.0)


def _body_and_back_hair(canvas: Canvas, face: Face) -> None:
    x, y, w, h = face.x, face.y, face.face_width, face.face_height
    if face.hair_style == "long":
        canvas.rounded((x - w - 0.055, y - h - 0.03), (x + w + 0.055, y + h * 0.98), 0.2, _hair_ink(face), HAIR)
    canvas.rounded((x - 0.34, y + h + 0.03), (x + 0.36, 1.2), 0.12, SHIRTS[face.shirt], CLOTHES)
    neck = 0.10 if face.look == "feminine" else 0.13
    canvas.rounded((x - neck, y + h * 0.6), (x + neck, y + h + 0.085), 0.06, shade(SKINS[face.skin], 0.84), SKIN)


def _head(canvas: Canvas, face: Face) -> None:
    x, y, w, h = face.x, face.y, face.face_width, face.face_height
    skin = SKINS[face.skin]
    for side in (-1, 1):
        canvas.ellipse((x + side * w, y + 0.02), (0.04, 0.06), shade(skin, 0.92), SKIN)
    canvas.ellipse((x, y), (w, h), skin, SKIN)
    if face.look == "masculine":
        canvas.rounded((x - w * 0.78, y + h * 0.2), (x + w * 0.78, y + h * 0.99), 0.13, skin, SKIN)
    nose = shade(skin, 0.68)
    canvas.line([(x, y + 0.02), (x + 0.028, y + 0.085), (x - 0.012, y + 0.095)], 0.014, nose, NOSE)


def _wrinkles(canvas: Canvas, face: Face) -> None:
    old = _oldness(face)
    if old == 0.0:
        return
    x, y, w, h = face.x, face.y, face.face_width, face.face_height
    skin = SKINS[face.skin]
    ink = blend(skin, shade(skin, 0.55), old)
    for k in range(3):
        width = w * (0.5 - 0.08 * k)
        canvas.line(curve((x - width, y - h * 0.42 - 0.035 * k), (x + width, y - h * 0.42 - 0.035 * k), -0.012), 0.012, ink, SKIN)
    for side in (-1, 1):
        eye = x + side * face.eye_spacing
        canvas.line(curve((eye - 0.045, y + 0.045), (eye + 0.045, y + 0.045), 0.024), 0.014, ink, SKIN)
        canvas.line(curve((x + side * 0.075, y + 0.09), (x + side * 0.125, y + 0.17), 0.0), 0.013, ink, SKIN)


def _beard(canvas: Canvas, face: Face) -> None:
    if not face.beard:
        return
    x, y, w, h = face.x, face.y, face.face_width, face.face_height
    ink = blend(_hair_ink(face), SKINS[face.skin], 0.12)
    moustache = curve((x - w * 0.5, y + h * 0.48), (x + w * 0.5, y + h * 0.48), -0.03)
    sides = [(x - w * 0.80, y + h * 0.42), *moustache, (x + w * 0.80, y + h * 0.42)]
    chin = [
        (x + w * 0.78, y + h * 0.78),
        (x + w * 0.55, y + h * 1.02),
        (x - w * 0.55, y + h * 1.02),
        (x - w * 0.78, y + h * 0.78),
    ]
    canvas.polygon([*sides, *chin], ink, HAIR)


def _mouth(canvas: Canvas, face: Face) -> None:
    x, y = face.x, face.y + face.face_height * 0.60
    lips: Colour = (198, 44, 66) if face.look == "feminine" else (176, 58, 62)
    thickness = 0.034 if face.look == "feminine" else 0.026
    amount = face.expression_amount
    if face.expression == "smiling":
        half, lift, bend, opening = 0.085 + 0.035 * amount, -0.02 * amount, 0.035 * amount, 0.03 * amount
        corners = ((x - half, y + lift), (x + half, y + lift))
        canvas.polygon(curve(*corners, bend) + curve(corners[1], corners[0], bend + 2 * opening), (250, 250, 246), MOUTH)
        canvas.line(curve(*corners, bend), thickness * 0.75, lips, MOUTH)
        canvas.line(curve(*corners, bend + 2 * opening), thickness, lips, MOUTH)
        return
    bend = {"neutral": 0.0, "sad": -0.055, "angry": -0.022}[face.expression] * amount
    half = {"neutral": 0.085, "sad": 0.08, "angry": 0.07}[face.expression]
    drop = {"neutral": 0.005, "sad": 0.03, "angry": 0.015}[face.expression] * amount
    canvas.line(curve((x - half, y + drop), (x + half, y + drop), bend), thickness, lips, MOUTH)


def _front_hair(canvas: Canvas, face: Face) -> None:
    if face.hair_style == "bald":
        return
    x, y, w, h = face.x, face.y, face.face_width, face.face_height
    ink = _hair_ink(face)
    fringe = y - h * 0.52
    outer = [(x + (w + 0.03) * np.cos(a), y - 0.02 + (h + 0.03) * np.sin(a)) for a in np.linspace(np.pi * 1.06, np.pi * 1.94, 17)]
    canvas.polygon(
        [*outer, *curve((x + w * 0.98, y - h * 0.18), (x - w * 0.98, y - h * 0.18), -(y - h * 0.18 - fringe))], ink, HAIR
    )
    if face.hair_style == "long":
        for side in (-1, 1):
            inner, edge = x + side * w * 0.86, x + side * (w + 0.055)
            canvas.polygon(
                [(inner, y - h * 0.35), (edge, y - h * 0.35), (edge, y + h * 0.8), (x + side * w * 0.98, y + h * 0.5)], ink, HAIR
            )


def _eyes(canvas: Canvas, face: Face) -> None:
    y = face.y - 0.015
    for side in (-1, 1):
        x = face.x + side * face.eye_spacing
        canvas.ellipse((x, y), (0.052, 0.036), (252, 252, 252), EYES)
        canvas.ellipse((x, y), (0.031, 0.032), EYES_COLOURS[face.eye_colour], EYES)
        canvas.ellipse((x, y), (0.013, 0.014), (14, 14, 18), EYES)
        if face.look == "feminine":
            canvas.line(curve((x - 0.055, y - 0.012), (x + 0.055, y - 0.012), -0.028), 0.014, (26, 22, 26), EYES)


def _brows(canvas: Canvas, face: Face) -> None:
    tilt = {"angry": 0.05, "sad": -0.042}.get(face.expression, 0.0) * face.expression_amount
    width = {"thin": 0.017, "thick": 0.036}[face.brow]
    ink = shade(_hair_ink(face), 0.72)
    y = face.y - 0.092 - (0.014 if face.expression == "smiling" else 0.0) * face.expression_amount
    for side in (-1, 1):
        x = face.x + side * face.eye_spacing
        inner, outer = (x - side * 0.05, y + tilt * 0.75), (x + side * 0.055, y - tilt * 0.5)
        canvas.line(curve(inner, outer, -0.012), width, ink, BROWS)


def _glasses(canvas: Canvas, face: Face) -> None:
    if not face.glasses:
        return
    ink: Colour = (20, 20, 26)
    y = face.y - 0.012
    radius = min(0.078, face.eye_spacing - 0.012)
    for side in (-1, 1):
        x = face.x + side * face.eye_spacing
        canvas.ring((x, y), (radius, 0.07), 0.02, ink, GLASSES)
        canvas.line([(x + side * radius, y - 0.01), (face.x + side * face.face_width, y - 0.025)], 0.018, ink, GLASSES)
    canvas.line(
        curve((face.x - face.eye_spacing + radius, y), (face.x + face.eye_spacing - radius, y), -0.012), 0.018, ink, GLASSES
    )
