"""One hash for any nest of plain values, tensors and dataclasses: what cache keys are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def fingerprint(value: Any) -> str:
    """Return 32 hex digits that two values share exactly when they are equal: type, dtype, shape and bytes included.

    Raises:
        TypeError: something whose content cannot be told, such as a function.
    """
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()[:32]


def _feed(sha: Any, value: Any) -> None:
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        sha.update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, Tensor):
        sha.update(f"tensor:{value.dtype}:{tuple(value.shape)};".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, bytes):
        sha.update(f"bytes:{len(value)};".encode() + value)
    elif isinstance(value, Mapping):
        sha.update(f"map:{len(value)};".encode())
        for key in sorted(value):
            _feed(sha, key)
            _feed(sha, value[key])
    elif isinstance(value, (list, tuple)):
        sha.update(f"list:{len(value)};".encode())
        for item in value:
            _feed(sha, item)
    elif is_dataclass(value) and not isinstance(value, type):
        sha.update(f"{type(value).__qualname__};".encode())
        _feed(sha, {f.name: getattr(value, f.name) for f in fields(value)})
    else:
        raise TypeError(f"cannot fingerprint a {type(value).__name__}: only plain values, tensors and dataclasses of them")
