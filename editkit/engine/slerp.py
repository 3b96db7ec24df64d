"""Between several noises: on the sphere, so that what lies between is noise of the same strength."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NARROW = 1e-4  # sine of the angle below which the sphere is flat


def slerp(a: Tensor, b: Tensor, share: Tensor | float) -> Tensor:
    """Return what lies at a share of the way from a to b, (B, ...) each, over all values of a sample together (Shoemake 1985).

    A mean of independent noises would lose 30 % of its length. The end points are exact.

    Args:
        share: 0 = a, 1 = b; a number or (B,).
    """
    shape = (len(a), *[1] * (a.ndim - 1))
    x, y = a.double().flatten(1), b.double().flatten(1)
    share = torch.as_tensor(share, dtype=torch.float64, device=a.device).expand(len(a))
    cosine = torch.nn.functional.cosine_similarity(x, y, eps=1e-12).clamp(-1, 1)
    angle = cosine.arccos()
    flat = angle.sin() < NARROW
    sine = torch.where(flat, 1.0, angle.sin())
    first = torch.where(flat, 1 - share, ((1 - share) * angle).sin() / sine)
    second = torch.where(flat, share, (share * angle).sin() / sine)
    mixed = (first.view(shape) * a.double() + second.view(shape) * b.double()).to(a.dtype)
    ends = torch.where((share == 1).view(shape), b, mixed)
    return torch.where((share == 0).view(shape), a, ends)


def slerp_all(noises: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return one noise of several (B, ...) with non-negative weights, taken in one after another by their share so far."""
    mixed, total = noises[0], weights[0]
    for noise, weight in zip(noises[1:], weights[1:], strict=True):
        total += weight
        mixed = slerp(mixed, noise, weight / total if total else 0.0)
    return mixed
