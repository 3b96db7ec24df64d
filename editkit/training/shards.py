"""Tensors of which each process holds a share, and whole ones: from one to the other, state of optimisers included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tree: Any) -> Any:
    """Return nested state with its sharded tensors gathered, on the CPU; all processes must ask for it together."""
    if isinstance(tree, DTensor):
        return tree.detach().full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return type(tree)(map(whole, tree)) if type(tree) in (list, tuple) else tree


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor shared out as another is, if that is shared out."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def optimizer_like(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a whole `state_dict` of an optimiser with what it holds of each parameter shared out as that parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = {
        index: {name: like(v, parameters[index]) if _is_of(v, parameters[index]) else v for name, v in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": held}


def _is_of(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape
