"""Noise that belongs to an image, not to its place in a batch: the same on every device, shard and batch size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def generator(*, seed: int, key: str, sample: int = 0, purpose: str) -> torch.Generator:
    """Return a CPU generator seeded by a hash of what the noise is for."""
    name = json.dumps([int(seed), key, int(sample), purpose]).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1)


def noise(
    shape: Sequence[int],
    *,
    seed: int,
    key: str,
    sample: int = 0,
    purpose: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return standard normal noise of `shape`, drawn in float32 on the CPU, then moved and cast.

    Args:
        shape: of one sample, (C, H, W).
        seed: of the run.
        key: names the image (its relative path).
        sample: number of the sample, where one image gets several.
        purpose: what the noise is for, such as "sdedit" or "step/12"; different purposes are independent.
        device: where to put it.
        dtype: what to cast it to.
    """
    drawn = torch.randn(*shape, generator=generator(seed=seed, key=key, sample=sample, purpose=purpose), dtype=torch.float32)
    return drawn.to(device=device, dtype=dtype)


def batch_noise(
    shape: Sequence[int],
    keys: Sequence[str],
    *,
    seed: int | Sequence[int],
    sample: int | Sequence[int] = 0,
    purpose: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the noise of several images, (len(keys), *shape); seed and sample are one for all or one each."""
    seeds = [seed] * len(keys) if isinstance(seed, int) else seed
    samples = [sample] * len(keys) if isinstance(sample, int) else sample
    drawn = [
        noise(shape, seed=own, key=key, sample=number, purpose=purpose)
        for key, own, number in zip(keys, seeds, samples, strict=True)
    ]
    return torch.stack(drawn).to(device=device, dtype=dtype)


def level_noise(
    shape: Sequence[int],
    keys: Sequence[str],
    *,
    seed: int | Sequence[int],
    sample: int | Sequence[int] = 0,
    purpose: str = "step",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Callable[[int], Tensor]:
    """Return `noise(i)` for `sample` and the inverters: independent noise for every level index."""

    def at(i: int) -> Tensor:
        return batch_noise(shape, keys, seed=seed, sample=sample, purpose=f"{purpose}/{i}", device=device, dtype=dtype)

    return at
