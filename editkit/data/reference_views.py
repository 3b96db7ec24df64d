"""References cut from a picture and changed, so that a model cannot simply copy them back (Paint by Example, section 3.3).

The transformations and their constants are those of the authors' chain of albumentations 0.4.3, at any size: lengths that
the library gives in pixels of a 224 x 224 picture are shares of the side here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.data.photo import Box

SIDE = 224  # pixels, for which the lengths below are meant
TURN = 20.0  # degrees
BLURS = (3, 5, 7)  # pixels
BEND = 50.0  # pixels that each anchor point of the warp moves along x and y


def cut_out(image: Tensor, box: Box, padding: int) -> Tensor:
    """Return a box of a picture (3, H, W) with up to `padding` pixels more on each side."""
    left, top, right, bottom = box
    return image[:, max(top - padding, 0) : bottom + padding, max(left - padding, 0) : right + padding]


def another_view(reference: Tensor, side: int) -> Tensor:
    """Return a reference (3, h, w) as (3, side, side): squeezed, then perhaps mirrored, turned, blurred, warped.

    The chances are 0.5, 0.5, 0.3 and 0.3, in this order. The warp is the affine part of an elastic transformation; the other
    part moves pixels by thousandths with the library's defaults and is left out.
    """
    view = F.interpolate(reference[None], size=(side, side), mode="bilinear", align_corners=False, antialias=False)[0]
    if _happens(0.5):
        view = view.flip(2)
    if _happens(0.5):
        view = warped(view, turn(side, _between(-TURN, TURN)))
    if _happens(0.3):
        view = blurred(view, _kernel(side))
    if _happens(0.3):
        view = warped(view, bend(side))
    return view


def turn(side: int, degrees: float) -> Tensor:
    """Return the matrix (2, 3) of a turn about the middle, from pixels of the result to pixels of the source."""
    angle, middle = math.radians(degrees), side / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor(
        [[cos, -sin, middle - middle * cos + middle * sin], [sin, cos, middle - middle * sin - middle * cos]], dtype=torch.float64
    )


def bend(side: int) -> Tensor:
    """Return the matrix (2, 3) that maps three points about the middle to points up to BEND off, result to source."""
    middle, third = side // 2, side // 3
    anchors = torch.tensor([[third, third], [third, -third], [-third, -third]], dtype=torch.float64) + middle
    reach = BEND * side / SIDE
    moved = anchors + (torch.rand(3, 2, dtype=torch.float64) * 2 - 1) * reach
    return torch.linalg.lstsq(torch.cat([moved, torch.ones(3, 1, dtype=torch.float64)], 1), anchors).solution.T


def warped(view: Tensor, matrix: Tensor) -> Tensor:
    """Return a square picture (3, S, S) whose pixel p shows pixel `matrix` (p, 1) of it, mirrored at its outermost pixels."""
    side = view.shape[-1]
    pixels = torch.arange(side, dtype=torch.float64)
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    source = torch.stack([x, y, torch.ones_like(x)], -1) @ matrix.T
    grid = (source * 2 / (side - 1) - 1).to(view.dtype)
    return F.grid_sample(view[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=True)[0]


def blurred(view: Tensor, kernel: int) -> Tensor:
    """Return a picture (3, H, W) averaged over squares of an odd number of pixels, mirrored at its outermost pixels."""
    reach = kernel // 2
    return F.avg_pool2d(F.pad(view[None], (reach,) * 4, mode="reflect"), kernel, 1)[0]


def _kernel(side: int) -> int:
    """Return one of the widths of a blur at random, no wider than in proportion, an odd number from 3."""
    width = BLURS[int(torch.randint(len(BLURS), ()))]
    scaled = round((width * min(side, SIDE) / SIDE - 1) / 2) * 2 + 1
    return max(scaled, BLURS[0])


def _happens(chance: float) -> bool:
    return bool(torch.rand(()) < chance)


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))
