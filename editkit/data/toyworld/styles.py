"""Pictures in another style, by plain image filters: what a restyling edit is to give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter


def restyled(image: np.ndarray, style: str) -> np.ndarray:
    """Return a picture in a style.

    Args:
        image: uint8 (H, W, 3) RGB.
        style: "plain" (as it is), "pencil", "ink", "poster", "mosaic", "watercolour" or "neon".

    Returns:
        uint8 (H, W, 3) RGB.
    """
    return FILTERS[style](image)


def _edges(image: np.ndarray) -> np.ndarray:
    """Return how strong the edges are: float (H, W), about 0 to 1."""
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 160)), dtype=np.float32) / 255
    rows, columns = np.gradient(soft, axis=(0, 1))
    return np.sqrt((rows**2 + columns**2).sum(axis=-1)) * (image.shape[0] / 64) ** 0.5


def _pencil(image: np.ndarray) -> np.ndarray:
    grey = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    paper = 205 + 0.18 * grey - 230 * np.clip(_edges(image), 0, 0.85)
    return np.repeat(np.clip(paper, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _ink(image: np.ndarray) -> np.ndarray:
    grey = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    rows, columns = np.indices(grey.shape) * (64 / image.shape[0])
    hatched = (rows + columns) % 4 < 2  # strokes across what is dark
    black = (_edges(image) > 0.1) | (grey < 62) | (hatched & (grey < 150))
    return np.where(black[..., None], (26, 28, 58), (250, 246, 232)).astype(np.uint8)


def _poster(image: np.ndarray) -> np.ndarray:
    flat = np.clip(np.round(image.astype(np.float32) / 64) * 64, 0, 255)
    flat[_edges(image) > 0.3] = (24, 20, 28)
    return flat.astype(np.uint8)


def _mosaic(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    tiles = Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)
    large = np.array(tiles.resize((width, height), Image.Resampling.NEAREST))
    for axis, length in ((0, height), (1, width)):
        tile = np.arange(length) * 16 // length
        joint = np.flatnonzero(np.diff(tile)) + 1
        index = (joint, slice(None)) if axis == 0 else (slice(None), joint)
        large[index] = (large[index] * 0.72).astype(np.uint8)
    return large


def _watercolour(image: np.ndarray) -> np.ndarray:
    wet = Image.fromarray(image).filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(image.shape[0] / 80))
    pale = 255 - (255 - np.asarray(wet, dtype=np.float32)) * 0.62
    rows, columns = np.indices(image.shape[:2]) * (64 / image.shape[0])
    grain = np.sin(rows * 0.9 + 2 * np.sin(columns * 0.35)) * np.sin(columns * 1.1 + 2 * np.sin(rows * 0.3))
    rims = np.clip(_edges(np.asarray(wet)) * 1.6, 0, 0.5)[..., None]  # colour gathers where a wash ends
    return np.clip((pale + 7 * grain[..., None]) * (1 - rims) + rims * image * 0.55, 0, 255).astype(np.uint8)


def _neon(image: np.ndarray) -> np.ndarray:
    colour = image.astype(np.float32)
    vivid = np.clip((colour - colour.mean(axis=-1, keepdims=True)) * 2.2 + 170, 0, 255)
    glow = np.clip(_edges(image) * 2.4, 0, 1)[..., None]
    return np.clip(glow * vivid + (1 - glow) * (10, 8, 26), 0, 255).astype(np.uint8)


FILTERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plain": lambda image: image,
    "pencil": _pencil,
    "ink": _ink,
    "poster": _poster,
    "mosaic": _mosaic,
    "watercolour": _watercolour,
    "neon": _neon,
}
CALLED = {
    "pencil": "a pencil drawing",
    "ink": "an ink drawing",
    "poster": "a poster",
    "mosaic": "a mosaic",
    "watercolour": "a watercolour painting",
    "neon": "a neon sign",
}
