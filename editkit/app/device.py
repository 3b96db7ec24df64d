"""Which device and which numbers a command computes with."""

from __future__ import annotations

import warnings

import torch

from editkit.engine.precision import computes_bf16
from editkit.errors import UsageError, UserError, suggestion

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(name: str | None = None) -> torch.device:
    """Return the named device, or the best one there is.

    Raises:
        UserError: a name that is no device, or a device that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is no device: choose cpu, cuda, cuda:N or mps") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(
            f"--device {name}: this machine has {count or 'no'} CUDA device{'s' if count > 1 else ''}; try --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: this machine has no MPS device; try --device cpu")
    return device


def dtype_of(name: str | None, device: torch.device) -> torch.dtype | None:
    """Return the number format that networks shall have on a device; None keeps the one they were loaded in.

    bf16 becomes float32, with a warning, on a device that would imitate it.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise UsageError(f"--dtype {name} does not exist: choose from {', '.join(DTYPES)}.{suggestion(name, DTYPES)}")
    if name == "bf16" and not computes_bf16(device):
        warnings.warn(f"{device} does not compute in bf16 and is slow to imitate it: taking fp32 instead", stacklevel=2)
        return torch.float32
    return DTYPES[name]
