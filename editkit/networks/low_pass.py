"""A low-pass filter that has no parameters: an image reduced by a factor and brought back to its size.

Both ways take the triangle kernel: stretched by the factor on the way down, so that nothing aliases; beyond the border the image
is mirrored, the outermost pixels repeated (the resampler of ILVR, Choi et al. 2021, with a linear kernel as in EGSDE).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def low_pass(x: Tensor, factor: int) -> Tensor:
    """Return A x A^T of images (B, C, H, W), where A reduces and enlarges a line by `factor`.

    Raises:
        ValueError: a size that the factor does not divide.
    """
    return _matrix(x, 2, factor) @ x @ _matrix(x, 3, factor).T


def squared_distance(x: Tensor, y: Tensor, factor: int) -> Tensor:
    """Return the sum over channels and pixels of (low_pass(x) - low_pass(y))^2, (B,)."""
    return low_pass(x - y, factor).square().sum((1, 2, 3))


def squared_distance_slope(x: Tensor, y: Tensor, factor: int) -> Tensor:
    """Return the gradient of `squared_distance` with respect to x, like x: 2 A^T A (x - y) A^T A."""
    return 2 * (_matrix(x, 2, factor).T @ low_pass(x - y, factor) @ _matrix(x, 3, factor))


def _matrix(x: Tensor, axis: int, factor: int) -> Tensor:
    return _there_and_back(x.shape[axis], factor).to(x)


@lru_cache(maxsize=32)
def _there_and_back(length: int, factor: int) -> Tensor:
    if factor < 1 or length % factor:
        raise ValueError(f"a low pass by {factor} needs sizes that {factor} divides, got {length}")
    down = _resampling(length, length // factor, stretch=factor)
    up = _resampling(length // factor, length, stretch=1)
    return torch.from_numpy(up @ down)


def _resampling(length: int, wanted: int, stretch: int) -> np.ndarray:
    """Return the matrix (wanted, length) that resamples a line with a triangle of half width `stretch` about each new pixel."""
    centres = (np.arange(wanted) + 0.5) * length / wanted - 0.5
    reach = np.arange(-2 * length, 3 * length)  # pixels of the line and of its mirror images
    weights = np.clip(1 - np.abs(centres[:, None] - reach) / stretch, 0, None)
    weights /= weights.sum(1, keepdims=True)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])[reach % (2 * length)]
    matrix = np.zeros((wanted, length))
    np.add.at(matrix.T, mirrored, weights.T)
    return matrix
