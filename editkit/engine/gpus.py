"""GPUs whose memory and peaks are known, as their makers state them: what a plan may name, and what a run is held against."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from editkit.errors import UsageError, suggestion


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        memory: bytes.
        half: dense peak in bfloat16, FLOP/s; None if it has none.
        single: the same in single precision, by the tensor cores' TF32 where there is that.
        driver: pattern of the name that its driver gives it.
    """

    name: str
    memory: int
    half: float | None
    single: float
    driver: str

    def peak(self, precision: int | str) -> float:
        """Return the peak for `trainer.precision`.

        Raises:
            UsageError: bf16, which this GPU has not.
        """
        if str(precision) != "bf16":
            return self.single
        if self.half is None:
            raise UsageError(f"{self.name} does not compute in bf16; add trainer.precision=32, or name another GPU")
        return self.half


GIB = 2**30
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 40 * GIB, 312e12, 156e12, r"A100.*40GB"),
        Gpu("a100-80", 80 * GIB, 312e12, 156e12, r"A100.*80GB"),
        Gpu("h100", 80 * GIB, 989e12, 494e12, r"H100.*HBM3"),
        Gpu("h200", 141 * GIB, 989e12, 494e12, r"H200"),
        Gpu("a10", 24 * GIB, 125e12, 62.5e12, r"A10$"),
        Gpu("l4", 24 * GIB, 121e12, 60e12, r"L4$"),
        Gpu("rtx4090", 24 * GIB, 165e12, 82.6e12, r"RTX 4090$"),
        Gpu("v100", 32 * GIB, None, 15.7e12, r"V100.*32GB"),
    )
}


def gpu_named(name: str) -> Gpu:
    """Return a GPU by its name.

    Raises:
        UsageError: an unknown one.
    """
    if name not in GPUS:
        raise UsageError(f"--gpu {name} is unknown.{suggestion(name, GPUS)} Known are {', '.join(GPUS)}")
    return GPUS[name]


def peak_of(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the dense peak of a device that is here, FLOP/s; None for processors and for GPUs that are not in the list."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((gpu for gpu in GPUS.values() if re.search(gpu.driver, name)), None)
    return None if known is None else known.single if dtype == torch.float32 else known.half
