"""The tensors of a TorchScript archive (OpenAI publishes CLIP so), without loading or running the program in it."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}


def is_torchscript(path: Path) -> bool:
    """Say whether a file is an archive with a program in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive by their place in the module tree, which is the name in its state dict.

    Raises:
        pickle.UnpicklingError: the file asks for something that is no module, tensor or list.
        KeyError: a storage is missing.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/constants.pkl"))
        root = root.removesuffix("/constants.pkl")
        with archive.open(f"{root}/data.pkl") as file:
            module = _Unpickler(file, archive, root).load()
    found: dict[str, Tensor] = {}
    _collect(module, "", found)
    return found


class _Scripted:
    """A scripted module, or any other object of its program, as the attributes that were saved of it."""


class _Unpickler(pickle.Unpickler):
    """Knows modules (as bags of attributes), tensors, and the lists of TorchScript; refuses every other name."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root
        self.bag = type("Scripted", (_Scripted,), {})  # a class of this file's own: it may write what it likes on it

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self.bag
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = _KNOWN.get(f"{module}.{name}")
        if known is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return known

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isalnum():
            raise pickle.UnpicklingError(f"a persistent id of the form {kind!r} is not allowed")
        data = self.archive.read(f"{self.root}/data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if int(count) else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *ignored: Any) -> Tensor:
    # as_strided checks the bounds: the storage cannot grow
    return torch.as_strided(storage, tuple(size), tuple(stride), offset).clone()


def _same(value: Any, *ignored: Any) -> Any:
    return value


_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.device": _same,
    "collections.OrderedDict": OrderedDict,
    "torch.jit._pickle.restore_type_tag": _same,
    "torch.jit._pickle.build_intlist": _same,
    "torch.jit._pickle.build_doublelist": _same,
    "torch.jit._pickle.build_boollist": _same,
    "torch.jit._pickle.build_tensorlist": _same,
}


def _collect(value: Any, place: str, found: dict[str, Tensor], depth: int = 32) -> None:
    if isinstance(value, Tensor):
        found[place] = value
    elif isinstance(value, _Scripted) and depth:
        for name, part in vars(value).items():
            _collect(part, f"{place}.{name}".lstrip("."), found, depth - 1)
