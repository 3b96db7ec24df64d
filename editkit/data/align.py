"""Turning a face upright by five landmarks, the crop that models trained on CelebA-HQ and FFHQ expect, and back again."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from editkit.data.fit import to_pil, to_tensor
from editkit.data.label_map import numbers_of
from editkit.data.photo import Box, Photo, by
from editkit.errors import UserError

# Left eye, right eye, nose, left and right corner of the mouth; left and right as the viewer sees an upright face.
POINTS = 5
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Aligned:
    """A turned square of a photograph that becomes the model's picture; it does all that `editkit.data.fit.Fit` does.

    Attributes:
        corner: (x, y) of the square's upper left corner, in pixels of the upright photograph.
        right, down: from there to the upper right and to the lower left corner.
        size: (height, width) of the model's pictures.
    """

    corner: tuple[float, float]
    right: tuple[float, float]
    down: tuple[float, float]
    size: tuple[int, int]

    def image(self, photo: Photo) -> Tensor:
        """Return (3, h, w) in [-1, 1]; what lies outside the photograph is its mirror image."""
        left, top, right, bottom = self._bounds()
        width, height = photo.size
        inner = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
        margins = ((inner[1] - top, bottom - inner[3]), (inner[0] - left, right - inner[2]), (0, 0))
        pixels = np.pad(np.asarray(photo.seen(inner)), margins, mode="symmetric")
        turned = self._turned(Image.fromarray(pixels), (left, top), Image.Resampling.BICUBIC)
        return to_tensor(turned.resize((self.size[1], self.size[0]), Image.Resampling.LANCZOS))

    def mask(self, mask: np.ndarray) -> Tensor:
        """Return (1, h, w): 1 wherever the square's part of an (H, W) bool mask touches a pixel."""
        turned = self._turned(Image.fromarray(mask.astype(np.float32)), (0, 0), Image.Resampling.BILINEAR)
        covered = turned.resize((self.size[1], self.size[0]), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(covered) > 1e-6).float()[None]

    def labels(self, photo: Photo) -> Tensor:
        """Return (1, h, w) of a map of labels (`label_map.numbers_of`), nearest pixels; 0 outside the photograph."""
        whole = numbers_of(photo.seen((0, 0, *photo.size)))
        turned = self._turned(whole, (0, 0), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(turned.resize((self.size[1], self.size[0]), Image.Resampling.NEAREST))).float()[None]

    def relative(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Return the upright box around a box in pixels of the photograph, as shares (0..1) of the model's picture."""
        x0, y0, x1, y1 = box
        corners = np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)])
        shares = np.clip((corners - self.corner) @ self._inverse().T, 0.0, 1.0)
        return (*shares.min(0).tolist(), *shares.max(0).tolist())  # type: ignore[return-value]

    def paste(self, photo: Photo, edited: Tensor, mask: np.ndarray | None = None) -> Photo:
        """Return the photograph with an edited (3, h, w) turned back into it; no bit outside square or mask changes."""
        left, top, right, bottom = self._bounds()
        box: Box = (max(left, 0), max(top, 0), min(right, photo.size[0]), min(bottom, photo.size[1]))
        width, height = self._resolution()
        large = to_pil(edited).resize((width, height), Image.Resampling.LANCZOS)
        inverse = self._inverse()
        start = inverse @ (np.array(box[:2]) - self.corner)
        rows = [(*(inverse[k] * side), start[k] * side) for k, side in enumerate((width, height))]
        picture = large.transform(
            (box[2] - box[0], box[3] - box[1]), Image.Transform.AFFINE, (*rows[0], *rows[1]), Image.Resampling.BICUBIC
        )
        inside = self._inside(box, photo.size)
        return photo.painted(box, picture, inside if mask is None else inside & mask)

    def _turned(self, picture: Image.Image, origin: tuple[int, int], how: Image.Resampling) -> Image.Image:
        """Return the square of a picture whose upper left pixel is `origin` of the photograph, at the photograph's resolution."""
        width, height = self._resolution()
        row = [
            (self.right[k] / width, self.down[k] / height, self.corner[k] - origin[k])
            for k in range(2)  # x, then y
        ]
        return picture.transform((width, height), Image.Transform.AFFINE, (*row[0], *row[1]), how)

    def _resolution(self) -> tuple[int, int]:
        """Return (width, height) at which a pixel of the square is about one of the photograph, a multiple of the model's."""
        height, width = self.size
        times = max(1, math.ceil(max(math.hypot(*self.right) / width, math.hypot(*self.down) / height) - 1e-6))
        return times * width, times * height

    def _bounds(self) -> Box:
        corner, right, down = (np.array(vector) for vector in (self.corner, self.right, self.down))
        corners = np.stack([corner, corner + right, corner + down, corner + right + down])
        (left, top), (far, low) = np.floor(corners.min(0) + 1e-6).astype(int), np.ceil(corners.max(0) - 1e-6).astype(int)
        return int(left), int(top), int(far), int(low)

    def _inverse(self) -> np.ndarray:
        """Return the 2 x 2 matrix from pixels after `corner` to shares of the square."""
        return np.linalg.inv(np.stack([self.right, self.down], 1))

    def _inside(self, box: Box, photo_size: tuple[int, int]) -> np.ndarray:
        """Return (H, W) bool over the photograph: pixels whose centre lies in the square."""
        left, top, right, bottom = box
        y, x = np.mgrid[top:bottom, left:right] + 0.5
        shares = np.stack([x - self.corner[0], y - self.corner[1]], -1) @ self._inverse().T
        where = np.zeros((photo_size[1], photo_size[0]), bool)
        where[top:bottom, left:right] = ((shares >= 0) & (shares <= 1)).all(-1)
        return where


def align(points: np.ndarray, photo_size: tuple[int, int], size: tuple[int, int], *, of: str = "the image") -> Aligned:
    """Return the square that FFHQ's preparation cuts out around a face.

    Its horizontal is the mean of the eyes' line and the normal of the line from eyes to mouth; it measures four eye distances
    or 3.6 times the distance from eyes to mouth, whichever is larger. This is the published preparation of FFHQ (Karras et al.
    2019), whose 68 landmarks enter only as eyes and mouth corners; its blur outside the photograph is left out.

    Args:
        points: (5, 2) in the order of `POINTS`.
        photo_size: (width, height) of the upright photograph.
        size: (height, width) of the model's pictures.

    Raises:
        UserError: points outside the photograph, in another order, or all in one place.
    """
    if (points < 0).any() or (points > photo_size).any():
        raise UserError(f"the landmarks of {of} lie outside it ({by(photo_size)}): they are pixels of the upright picture")
    eyes, mouth = (points[0] + points[1]) / 2, (points[3] + points[4]) / 2
    across, along = points[1] - points[0], mouth - eyes
    if across[0] * along[1] - across[1] * along[0] <= 1e-3:
        raise UserError(
            f"the landmarks of {of} are no face: give left eye, right eye, nose, left and right corner of the mouth, where left "
            f"is the left of the picture when the face is upright"
        )
    direction = across + np.array([along[1], -along[0]])
    half = direction / np.hypot(*direction) * max(2.0 * np.hypot(*across), 1.8 * np.hypot(*along))
    below = np.array([-half[1], half[0]])
    corner = eyes + 0.1 * along - half - below
    return Aligned(tuple(corner.tolist()), tuple((2 * half).tolist()), tuple((2 * below).tolist()), size)


def parse_landmarks(value: Any, *, of: str = "the image") -> np.ndarray:
    """Return ten numbers, in a text or nested lists of any form, as (5, 2).

    Raises:
        UserError: not ten numbers.
    """
    numbers = [float(number) for number in _NUMBER.findall(str(value))]
    if len(numbers) != 2 * POINTS:
        raise UserError(
            f"the landmarks of {of} are {len(numbers)} numbers where ten are needed: x,y of left eye, right eye, nose, left and "
            f"right corner of the mouth"
        )
    return np.array(numbers).reshape(POINTS, 2)


def read_landmarks(path: Path) -> dict[str, str]:
    """Return the landmarks in a table by file name: a name and ten numbers a line, as CelebA's list_landmarks_*.txt or CSV.

    Raises:
        UserError: a file that cannot be read, or without such a line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the landmarks {path}: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    rows = (next(csv.reader([line])) if "," in line else line.split() for line in lines)
    found = {row[0].strip(): " ".join(row[1:]) for row in rows if len(row) == 1 + 2 * POINTS and not _NUMBER.fullmatch(row[0])}
    found = {name: text for name, text in found.items() if len(_NUMBER.findall(text)) == 2 * POINTS}
    if not found:
        raise UserError(f"{path} has no landmarks: each line is a file name and ten numbers (x and y of five points)")
    return found
