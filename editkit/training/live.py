"""What a computation holds in memory and how much it computes, counted operation by operation, on any device or on none."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from editkit.engine.count import products


class Live(TorchDispatchMode):
    """Counts the storages that are made while it is open, none that was there before, and the operations of products.

    Convolutions are products.

    Attributes:
        now, peak: bytes of the storages that are alive, and the most that ever were.
        flops: floating-point operations, two for a multiplication with its addition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.flops = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        self.flops += products(func, args, kwargs, made)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(made):
            if storage._cdata not in given:  # else it is a view, or changed in place, of what may have been there before
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


class NotThere(Exception):
    """A whole number was read that only weights or data could tell."""


class ReadAsUnknown(TorchDispatchMode):
    """Lets a computation on the meta device read values back: a truth is False, a number is not a number.

    Raises:
        NotThere: a whole number is read.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if source is not None and func is torch.ops.aten._local_scalar_dense.default:
            return _unknown(source.dtype)
        if source is not None and func is torch.ops.aten._to_copy.default:
            target = kwargs.get("device")
            if target is not None and torch.device(target).type != "meta":
                return torch.full(source.shape, _unknown(source.dtype), dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)


def _unknown(dtype: torch.dtype) -> bool | float:
    if dtype == torch.bool:
        return False
    if dtype.is_floating_point:
        return float("nan")
    raise NotThere("a number is read that only the weights or the data can tell")
