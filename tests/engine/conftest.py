"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from editkit.backbones.pixel import PixelBackbone
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.schedule import Schedule
from tests.engine.stand_ins import SHAPE, Doubled, Gaussian, Wavy, Worded, random, tiny_unet


@pytest.fixture
def gaussian():
    return Gaussian().requires_grad_(False)


@pytest.fixture
def wavy():
    return Wavy().requires_grad_(False)


@pytest.fixture
def worded():
    return Worded().requires_grad_(False)


@pytest.fixture(scope="session")
def doubled():
    return Doubled()


@pytest.fixture(scope="session")
def backbone():
    return PixelBackbone(tiny_unet(), Schedule.linear(), "eps")


@pytest.fixture
def x0():
    """Three samples of about unit size, float64."""
    return 0.7 * random((3, *SHAPE), 7)


@pytest.fixture
def images():
    """Three tiny images in [-1, 1], float32."""
    return random((3, 3, 8, 8), 8, torch.float32).tanh()


@pytest.fixture
def noise():
    """Level noise for a batch of `n` samples."""

    def of(like: Tensor, seed: int = 0):
        return level_noise(like.shape[1:], [f"{n}.png" for n in range(len(like))], seed=seed, dtype=like.dtype)

    return of


@pytest.fixture
def at_the_end():
    """A start from pure noise for a batch."""

    def of(like: Tensor, seed: int = 0) -> Tensor:
        keys = [f"{n}.png" for n in range(len(like))]
        return batch_noise(like.shape[1:], keys, seed=seed, purpose="start", dtype=like.dtype)

    return of
