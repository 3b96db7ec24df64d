"""What the processes of a run tell each other; computing something of every training image once, each its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

BATCH = 16  # images at once

T = TypeVar("T")
Rows = dict[str, dict[str, Tensor]]


def processes() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) of one alone."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)


def computed_once(dataset: Any, compute: Callable[[Tensor, list[str]], Mapping[str, Tensor]]) -> Rows:
    """Return {key: {name: row}} of all images, on every process and on the CPU.

    Args:
        dataset: with a length; its items have an "image" (3, H, W) and a "key".
        compute: from images (B, 3, H, W) and their keys to {name: (B, ...)}.
    """
    rank, world = processes()
    own = range(rank, len(dataset), world)
    kept: Rows = {}
    for first in range(0, len(own), BATCH):
        items = [dataset[k] for k in own[first : first + BATCH]]
        keys = [item["key"] for item in items]
        columns = compute(torch.stack([item["image"] for item in items]), keys)
        kept |= {key: {name: column[n].cpu() for name, column in columns.items()} for n, key in enumerate(keys)}
    return {key: row for share in gathered(kept) for key, row in share.items()}


def gathered(own: T) -> list[T]:
    """Return what each process of the run gives, in their order, on every one of them; it must be fit for pickling."""
    if not torch.distributed.is_initialized():
        return [own]
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, own)
    return shares


def looked_up(rows: Rows, keys: Sequence[str], device: torch.device) -> dict[str, Tensor] | None:
    """Return {name: (B, ...)} of the images with these keys, on a device; None if some of them were not computed."""
    if not all(key in rows for key in keys):
        return None
    return {name: torch.stack([rows[key][name] for key in keys]).to(device) for name in rows[keys[0]]}
