"""Nested state as JSON plus tensors, so that nothing of a checkpoint needs pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

_TENSOR, _TUPLE, _PAIRS, _ARRAY = "$tensor", "$tuple", "$pairs", "$array"


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts, lists and tuples into a JSON value and the tensors it refers to.

    Raises:
        TypeError: a leaf that neither JSON nor safetensors can hold.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: path}
        if isinstance(node, np.ndarray):
            return {_ARRAY: [str(node.dtype), node.tolist()]}
        if isinstance(node, dict):
            walked = [(key, walk(value, f"{path}/{key}")) for key, value in node.items()]
            return dict(walked) if all(isinstance(key, str) for key in node) else {_PAIRS: walked}
        if isinstance(node, (list, tuple)):
            items = [walk(value, f"{path}/{i}") for i, value in enumerate(node)]
            return {_TUPLE: items} if isinstance(node, tuple) else items
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(f"a checkpoint cannot hold the {type(node).__name__} at {path or '/'}")

    return walk(tree, ""), tensors


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `pack`."""
    if isinstance(packed, list):
        return [unpack(value, tensors) for value in packed]
    if not isinstance(packed, dict):
        return packed
    if packed.keys() == {_TENSOR}:
        return tensors[packed[_TENSOR]]
    if packed.keys() == {_ARRAY}:
        dtype, values = packed[_ARRAY]
        return np.array(values, dtype=dtype)
    if packed.keys() == {_TUPLE}:
        return tuple(unpack(packed[_TUPLE], tensors))
    if packed.keys() == {_PAIRS}:
        return {key: unpack(value, tensors) for key, value in packed[_PAIRS]}
    return {key: unpack(value, tensors) for key, value in packed.items()}
