"""Networks taken as constants: a gradient passes through them and reaches none of their weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.func import functional_call


def as_constant(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return network(*args, **kwargs), computed with its trained weights as constants."""
    weights = {name: weight.detach() for name, weight in network.named_parameters() if weight.requires_grad}
    return functional_call(network, weights, args, kwargs)
