"""Contrastive losses over the pairs of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(first: Tensor, second: Tensor, leave_out: Tensor, temperature: float = 0.1) -> Tensor:
    """Return InfoNCE in both directions (van den Oord et al. 2018): each row must be nearest to its own partner.

    Args:
        first, second: (N, D); row k of one is the partner of row k of the other. Without rows the loss is 0.
        leave_out: bool (N, N), pairs that are no negatives although they are no partners; the diagonal does not count.
        temperature: of the cosines.
    """
    if not len(first):
        return first.sum() * 0 + second.sum() * 0
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    own = torch.eye(len(first), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(leave_out.to(logits.device) & ~own, -torch.inf)
    target = torch.arange(len(first), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def alike(names: list[str]) -> Tensor:
    """Return bool (N, N): which have the same name."""
    return torch.tensor([[one == other for other in names] for one in names], dtype=torch.bool).reshape(len(names), len(names))
