"""Whether two pictures show the same face."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def similarity(embed: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine (B,) between the identity embeddings of two batches (B, 3, H, W) in [-1, 1]; 1 is the same face."""
    return F.cosine_similarity(embed(a), embed(b))
