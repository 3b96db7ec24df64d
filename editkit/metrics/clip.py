"""How well an edit goes the way that two captions describe, in CLIP's space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-4  # length of a change of unit features that is rounding error rather than a direction


def direction(source: Tensor, edited: Tensor, source_text: Tensor, target_text: Tensor) -> Tensor:
    """Return cos(E_I(edited) - E_I(source), E_T(target) - E_T(source)) per image, (B,) in [-1, 1].

    Undefined where the two pictures have the same features: nan, to be left out and counted, never 0.

    Args:
        source, edited: normalised image features (B, D).
        source_text, target_text: normalised text features (D,) or (1, D).

    Raises:
        ValueError: both captions have the same features, so they say nothing of a direction.
    """
    if (target_text - source_text).norm() < SMALLEST:
        raise ValueError("the two captions mean the same to this CLIP: no direction to measure along")
    return directions(source, edited, source_text.reshape(1, -1), target_text.reshape(1, -1))


def directions(source: Tensor, edited: Tensor, source_texts: Tensor, target_texts: Tensor) -> Tensor:
    """Return the same for captions of each image, (B, D); nan also where those mean the same."""
    change, wanted = edited - source, target_texts - source_texts
    still = (change.norm(dim=1) < SMALLEST) | (wanted.norm(dim=1) < SMALLEST)
    return torch.where(still, torch.nan, F.cosine_similarity(change, wanted))
