"""Attention as a tap sees it: queries, keys and values per head, and the place in the network that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """One attention of a network during one call.

    Attributes:
        name: such as "down.0.1.attn2", the cross-attention of the second attention block of the first down block.
        kind: "self" or "cross".
        size: (h, w), the grid of the h w queries.
        scale: factor of the logits q k^T.
        mask: what is added to the logits, broadcastable to (B, heads, h w, keys), or None.
    """

    name: str
    kind: str
    size: tuple[int, int]
    scale: float
    mask: Tensor | None = field(default=None, compare=False)

    def rows(self, rows: Tensor) -> Place:
        """Return this place for some rows of the batch."""
        return self if self.mask is None or len(self.mask) == 1 else replace(self, mask=self.mask[rows])


# (q (B, heads, h w, d), k (B, heads, keys, d), v (B, heads, keys, d), place) -> (B, heads, h w, d), or None for the usual.
AttentionTap = Callable[[Tensor, Tensor, Tensor, Place], Tensor | None]


def attend(q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
    """Return softmax(scale q k^T + mask) v, (B, heads, h w, d), without keeping the map."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=place.mask, scale=place.scale)


def attention_map(q: Tensor, k: Tensor, place: Place) -> Tensor:
    """Return softmax(scale q k^T + mask), (B, heads, h w, keys), computed in float32 at least, in the dtype of q."""
    logits = place.scale * (q @ k.transpose(-1, -2))
    logits = logits.float() if logits.itemsize < 4 else logits
    return (logits if place.mask is None else logits + place.mask).softmax(-1).to(q.dtype)
