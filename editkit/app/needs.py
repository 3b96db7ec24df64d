"""What a training needs: memory, arithmetic, time, disk."""

from __future__ import annotations

from dataclasses import dataclass

from editkit.engine.gpus import Gpu
from editkit.training import estimate
from editkit.training.plan import Plan


@dataclass(frozen=True)
class Training:
    """What a training takes.

    Attributes:
        parts: parameters and bytes by part of the method.
        memory: bytes of one device by what they are for.
        batch: what a batch takes of a device; None if it cannot be told, and then `unknown` says why.
        checkpoint: bytes of one checkpoint.
        export: bytes of what is exported; None if it cannot be told.
        cache: bytes of what is kept of an item of the data, and how many items there are, None if that cannot be told; None where
            nothing is kept.
    """

    plan: Plan
    parts: dict[str, estimate.Part]
    memory: dict[str, int]
    batch: estimate.Batch | None
    unknown: str
    checkpoint: int
    export: int | None
    cache: tuple[int, int | None] | None = None

    @property
    def total(self) -> int:
        """Bytes of one device."""
        return sum(self.memory.values())

    @property
    def batches(self) -> float | None:
        """Batches of all devices together over the whole training, as the loop counts them."""
        plan = self.plan
        if plan.images is not None:
            return -(-plan.images // plan.batch_size)
        return None if self.batch is None else plan.length * plan.accumulate / self.batch.updates

    @property
    def flops(self) -> float | None:
        """FLOPs of the whole training, all devices together; at most, where images are prepared that return."""
        return None if self.batch is None or self.batches is None else self.batches * self.batch.flops * self.plan.world

    def hours(self, gpu: Gpu, utilisation: float) -> float | None:
        """Return how long it takes on such GPUs."""
        if self.flops is None:
            return None
        return self.flops / (gpu.peak(self.plan.precision) * utilisation * self.plan.world) / 3600
