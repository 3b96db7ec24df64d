"""Reading other people's checkpoints: tensors and plain containers come out, and nothing that a file says is ever run."""

from __future__ import annotations

import argparse
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from editkit.backbones.convert.torchscript import is_torchscript, read_torchscript
from editkit.errors import UserError

DEPTH = 8  # containers in containers; published files nest three deep


def read_checkpoint(path: Path) -> Any:
    """Return what a checkpoint holds on the CPU: tensors, numbers and texts in lists and mappings.

    Reads safetensors, torch files of any age by torch's own restricted unpickler, and TorchScript archives without their
    code. Added to the unpickler as inert data is what old training loops left behind: numpy's scalars, argparse.Namespace
    and the name of Lightning's callback. There is no second, less careful attempt.

    Raises:
        UserError: no such file, no checkpoint, one that is cut off, or one that asks for more than data; it names what.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a checkpoint file")
    try:
        return _read(path)
    except pickle.UnpicklingError as error:
        raise _refusal(path, str(error)) from error
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint, it may be cut off: {_first_line(error)}") from error
    except (AttributeError, ImportError, IndexError, KeyError, TypeError) as error:  # what unpicklers make of garbage
        raise UserError(f"{path} is not a checkpoint: {type(error).__name__} {_first_line(error)}") from error


def tensor_sets(content: Any, place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (place, tensors by name) for every mapping of a checkpoint that holds named tensors, from the outside inwards.

    The place is made of keys and positions, "4" or "ema/model". The prefix "module." of wrapped models is taken off.
    """
    if depth == 0:
        return
    if isinstance(content, Mapping):
        tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors:
            wrapped = all(name.startswith("module.") for name in tensors)
            yield place, {name.removeprefix("module.") if wrapped else name: value for name, value in tensors.items()}
        parts = list(content.items())
    else:
        parts = list(enumerate(content)) if isinstance(content, (list, tuple)) else []
    for key, value in parts:
        yield from tensor_sets(value, f"{place}/{key}".lstrip("/"), depth - 1)


class _NumpyType:
    """What stands for numpy.dtype in a pickle: its name alone, whatever else the file says of it."""

    def __init__(self, name: Any = "", *ignored: Any) -> None:
        self.name = str(name)

    def __setstate__(self, state: Any) -> None:
        """Leave byte order and fields out: a scalar of a plain type needs none."""


def _numpy_scalar(kind: Any, data: Any = b"") -> bool | int | float | complex:
    """Return a numpy scalar as Python's own number."""
    if not (isinstance(kind, _NumpyType) and re.fullmatch(r"[biufc]\d{1,2}", kind.name)):
        raise pickle.UnpicklingError(f"GLOBAL numpy.dtype of {getattr(kind, 'name', kind)!r}")
    return np.frombuffer(data, np.dtype(kind.name))[0].item()


class _Callback:
    """What stands for a training callback's class where old Lightning files name it as a key; it is never made."""


_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_NumpyType, "numpy.dtype"),
    (_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
]


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if tarfile.is_tarfile(path):
        raise UserError(f"{path} is a tar archive: unpack it, then convert the checkpoint in it")
    if is_torchscript(path):
        return read_torchscript(path)
    with torch.serialization.safe_globals(_HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, reason: str) -> UserError:
    asked = re.search(r"GLOBAL (\S+)", reason)
    if asked is None:  # torch's own text goes on to recommend reading it without care
        return UserError(f"{path} is not a checkpoint that can be read as data alone; it may be cut off or something else")
    return UserError(
        f"{path} asks for {asked[1].rstrip('.,')} when it is read, which is more than data; refused. "
        "Save its state dict alone where you trust it, and convert that"
    )


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
