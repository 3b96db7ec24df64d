"""How far two pictures differ in structure, whatever their colours: by how alike a picture's patches are to each other."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class KeyEncoder(Protocol):
    """A vision transformer that gives the keys (B, N, D) of its patches."""

    def keys(self, images: Tensor) -> Tensor: ...


def self_similarity(keys: Tensor) -> Tensor:
    """Return the cosines (B, N, N) between the patches' keys (B, N, D) of each picture."""
    unit = F.normalize(keys.float(), dim=-1)
    return unit @ unit.mT


def structure_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance (B,) of two batches of patch keys (B, N, D), 0 for the same structure, at most 2.

    It is the Frobenius norm of the difference of the self-similarities (Tumanyan et al., CVPR 2022, equation 4), divided by
    the number of patches, so that pictures of any size are on one scale: the root of the mean squared difference. The paper
    takes the keys of the deepest layer of a DINO, the token of the whole image among them; we take the patches' alone, and
    evaluation takes those of the last layer of `editkit:toy-dino`.

    Raises:
        ValueError: batches of different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"both pictures need the same patches, got keys {tuple(a.shape)} and {tuple(b.shape)}")
    return (self_similarity(a) - self_similarity(b)).square().mean((1, 2)).sqrt()
