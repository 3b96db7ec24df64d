"""How well an edit goes the way that two captions describe, in CLIP's space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-4  # length of a change of unit features that is rounding error rather than a direction


def direction(source: Tensor, edited: Tensor, source_text: Tensor, target_text: Tensor) -> Tensor:
    """Return cos(E_I(edited) - E_I(source), E_T(target) - E_T(source)) per image, (B,) in [-1, 1].

    Undefined where the two pictures have the same features: nan, to be left out and counted, never 0. So it is where captions
    of its own for each picture have.

    Args:
        source, edited: normalised image features (B, D).
        source_text, target_text: normalised text features (D,) or (1, D) of one pair of captions, (B, D) of one a picture.

    Raises:
        ValueError: the only two captions have the same features, so they say nothing of a direction.
    """
    wanted = (target_text - source_text).reshape(-1, source.shape[1])
    silent = wanted.norm(dim=1) < SMALLEST
    if len(wanted) == 1 and silent.any():
        raise ValueError("the two captions mean the same to this CLIP: no direction to measure along")
    change = edited - source
    return torch.where((change.norm(dim=1) < SMALLEST) | silent, torch.nan, F.cosine_similarity(change, wanted))
