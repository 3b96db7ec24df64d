"""How a photograph of any size meets a model of one size, and how the edited part returns into the photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from editkit.data.label_map import numbers_of
from editkit.data.photo import Box, Photo

FITS = ("mask", "crop", "resize")
# A mask's surroundings that a method gets to see: the box is this much longer than the mask.
CONTEXT = 1.5


@dataclass(frozen=True)
class Fit:
    """The part of a photograph that becomes the model's picture.

    Attributes:
        box: (left, top, right, bottom) in pixels of the upright photograph.
        size: (height, width) of the model's pictures.
    """

    box: Box
    size: tuple[int, int]

    def image(self, photo: Photo) -> Tensor:
        """Return (3, h, w) in [-1, 1]; a part that has the model's size already is not resampled."""
        return to_tensor(_resized(photo.seen(self.box), (self.size[1], self.size[0])))

    def mask(self, mask: np.ndarray) -> Tensor:
        """Return (1, h, w): 1 wherever the box's part of an (H, W) bool mask touches a pixel, so that thin masks survive."""
        left, top, right, bottom = self.box
        part = Image.fromarray(mask[top:bottom, left:right].astype(np.float32))
        covered = part.resize((self.size[1], self.size[0]), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(covered) > 1e-6).float()[None]

    def labels(self, photo: Photo) -> Tensor:
        """Return (1, h, w) of a map of labels (`label_map.numbers_of`), resampled by taking the nearest pixel."""
        part = numbers_of(photo.seen(self.box)).resize((self.size[1], self.size[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(part)).float()[None]

    def relative(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Return a box in pixels of the photograph as shares (0..1) of the model's picture."""
        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        x0, y0, x1, y1 = ((box[0] - left) / width, (box[1] - top) / height, (box[2] - left) / width, (box[3] - top) / height)
        return _inside(x0), _inside(y0), _inside(x1), _inside(y1)

    def paste(self, photo: Photo, edited: Tensor, mask: np.ndarray | None = None) -> Photo:
        """Return the photograph with an edited (3, h, w) put back at full resolution; no bit outside box or mask changes."""
        left, top, right, bottom = self.box
        return photo.painted(self.box, _resized(to_pil(edited), (right - left, bottom - top)), mask)


def fit(photo_size: tuple[int, int], size: tuple[int, int], how: str | None = None, mask: np.ndarray | None = None) -> Fit:
    """Return the Fit of a photograph of (width, height) to a model's (height, width).

    `mask` zooms on the mask with some surroundings, `crop` takes the largest centred part of the model's shape, `resize`
    squeezes the whole picture. None zooms if there is a mask and crops otherwise.

    Raises:
        ValueError: `how` is none of `FITS`, or it is "mask" and there is none.
    """
    how = how or ("crop" if mask is None else "mask")
    width, height = photo_size
    if how == "resize":
        return Fit((0, 0, width, height), size)
    largest = _largest(photo_size, size)
    if how == "crop":
        return Fit(_around((width / 2, height / 2), largest, photo_size), size)
    if how != "mask" or mask is None:
        raise ValueError(f"fit must be one of {FITS}, and mask only with a mask; got {how!r}")
    return Fit(_zoom(mask, photo_size, size, largest), size)


def fit_holding(photo_size: tuple[int, int], size: tuple[int, int], box: tuple[float, float, float, float]) -> Fit:
    """Return the largest part of the model's shape, moved from the centre as little as it takes to hold a box.

    Of a box that is longer than the part, the part shows the middle.
    """
    largest = _largest(photo_size, size)
    centre = [_nearest(photo_size[k] / 2, box[k], box[k + 2], largest[k]) for k in (0, 1)]
    return Fit(_around((centre[0], centre[1]), largest, photo_size), size)


def fit_whole(photo_size: tuple[int, int], size: tuple[int, int]) -> Fit:
    """Return the Fit of a whole photograph of (width, height) in its own shape, made smaller until it just covers a size."""
    (width, height), (rows, columns) = photo_size, size
    scale = min(1.0, max(rows / height, columns / width))
    return Fit((0, 0, width, height), (max(1, round(scale * height)), max(1, round(scale * width))))


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0


def to_pil(image: Tensor) -> Image.Image:
    """Return (3, H, W) in [-1, 1] (values outside are cut off) as an 8-bit RGB image."""
    levels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _zoom(mask: np.ndarray, photo_size: tuple[int, int], size: tuple[int, int], largest: tuple[int, int]) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    centre = ((x0 + x1) / 2, (y0 + y1) / 2)
    height, width = size
    # In units of the model's picture: as large as the mask asks for, but not smaller than one model pixel a pixel.
    scale = max(CONTEXT * (x1 - x0) / width, CONTEXT * (y1 - y0) / height, 1.0)
    part = (min(round(scale * width), largest[0]), min(round(scale * height), largest[1]))
    if part[0] < x1 - x0 or part[1] < y1 - y0:
        # The mask is longer than the largest part of the model's shape: give up the shape, never a part of the mask.
        part = (max(part[0], x1 - x0), max(part[1], y1 - y0))
    return _around(centre, part, photo_size)


def _nearest(centre: float, start: float, end: float, length: int) -> float:
    """Return the place nearest to `centre` about which a stretch of some length holds start to end, or their middle."""
    if end - start > length:
        return (start + end) / 2
    return min(max(centre, math.ceil(end) - length / 2), math.floor(start) + length / 2)


def _largest(photo_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    (width, height), (rows, columns) = photo_size, size
    scale = min(width / columns, height / rows)
    return max(1, min(width, round(scale * columns))), max(1, min(height, round(scale * rows)))


def _around(centre: tuple[float, float], part: tuple[int, int], photo_size: tuple[int, int]) -> Box:
    left = min(max(round(centre[0] - part[0] / 2), 0), photo_size[0] - part[0])
    top = min(max(round(centre[1] - part[1] / 2), 0), photo_size[1] - part[1])
    return left, top, left + part[0], top + part[1]


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _inside(share: float) -> float:
    return min(max(share, 0.0), 1.0)
