"""GPUs that a plan may name: memory and peaks, as their makers state them."""

from __future__ import annotations

from dataclasses import dataclass

from editkit.errors import UsageError, suggestion


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        memory: bytes.
        half: dense peak in bfloat16, FLOP/s; None if it has none.
        single: the same in single precision, by the tensor cores' TF32 where there is that.
    """

    name: str
    memory: int
    half: float | None
    single: float

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
        Gpu("a100-40", 40 * GIB, 312e12, 156e12),
        Gpu("a100-80", 80 * GIB, 312e12, 156e12),
        Gpu("h100", 80 * GIB, 989e12, 494e12),
        Gpu("a10", 24 * GIB, 125e12, 62.5e12),
        Gpu("l4", 24 * GIB, 121e12, 60e12),
        Gpu("rtx4090", 24 * GIB, 165e12, 82.6e12),
        Gpu("v100", 32 * GIB, None, 15.7e12),
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
