"""Maps of part labels as pictures: one colour a part, so that any paint program can change them."""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

# Colours of the labels, in the order of a domain's parts.
PALETTE = (
    (0, 0, 0), (240, 190, 150), (120, 70, 30), (60, 40, 20), (70, 130, 230), (240, 150, 60),
    (210, 50, 80), (250, 230, 60), (90, 170, 90), (160, 90, 200), (60, 190, 190), (150, 150, 150),
    (110, 40, 40), (40, 90, 40), (40, 50, 120), (200, 200, 120), (120, 200, 140), (140, 180, 240),
    (250, 120, 190), (170, 120, 60), (100, 140, 140), (190, 230, 60), (230, 90, 20), (90, 60, 120),
    (230, 220, 210), (60, 110, 170), (200, 160, 200),
)  # fmt: skip


def indexed(labels: np.ndarray) -> Image.Image:
    """Return labels, uint8 (H, W), as an indexed picture in the colours of `PALETTE`."""
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette([value for colour in PALETTE for value in colour])
    return picture


def numbers_of(picture: Image.Image) -> Image.Image:
    """Return a map of labels as their numbers, a grey picture.

    A picture of nothing but shades of grey below the palette's size has the numbers themselves; any other has colours of
    `PALETTE`. Other colours, such as a brush with soft edges leaves, count as the nearest one, with a UserWarning.
    """
    pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
    if (pixels == pixels[..., :1]).all() and pixels.max() < len(PALETTE):
        return Image.fromarray(pixels[..., 0].astype(np.uint8))
    colours, where = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    distances = np.square(colours[:, None] - np.array(PALETTE)).sum(-1)
    odd = np.bincount(where.reshape(-1), minlength=len(colours))[distances.min(1) > 0].sum()
    if odd:
        share = odd / (pixels.shape[0] * pixels.shape[1])
        warnings.warn(
            f"{share:.1%} of the map's pixels have colours that are no part's: the nearest is taken; paint without soft edges",
            stacklevel=2,
        )
    return Image.fromarray(distances.argmin(1)[where].reshape(pixels.shape[:2]).astype(np.uint8))
