"""Two coupled states in one tensor: (B, 2C, H, W), the first state's channels first.

Both are kept in float64, whatever the network computes in: coupled methods invert exactly but amplify rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def join(first: Tensor, second: Tensor) -> Tensor:
    """Return two states (B, C, H, W) as one."""
    return torch.cat([first, second], 1)


def halves(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two states of a pair."""
    first, second = pair.chunk(2, 1)
    return first, second


def first_as(dtype: str) -> Callable[[Tensor], Tensor]:
    """Return a function that reads the first state, in the dtype of this name."""
    return lambda pair: halves(pair)[0].to(getattr(torch, dtype))


def dtype_name(x: Tensor) -> str:
    """Return the name of a tensor's dtype, such as "float32"."""
    return str(x.dtype).removeprefix("torch.")
