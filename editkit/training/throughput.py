"""How fast a training is, how much of its device it uses, and how long it waits for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from editkit.engine.count import Flops
from editkit.engine.gpus import peak_of
from editkit.training.plan import Plan

# The figures that differ between two runs of the same bits.
FIGURES = ("images_per_s", "data_wait", "tflop_per_s", "of_peak")


class Throughput(Callback):
    """Measures between readings; the floating-point operations are counted once, in the first batch of the process.

    Attributes:
        flops: operations of a batch on this device, forward and backward; None until the first one is over.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.flops: int | None = None
        self.peak: float | None = None
        self.counting = contextlib.ExitStack()
        self.batches, self.waited = 0, 0.0
        self.read_at = time.monotonic()

    def timed(self, loader: Iterable[Any]) -> Timed:
        """Return a loader that notes here how long its batches were waited for."""
        return Timed(loader, self)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clock, and look up what the device could do."""
        dtype = torch.bfloat16 if str(self.plan.precision) == "bf16" else torch.float32
        self.peak = peak_of(pl_module.device, dtype)
        self.batches, self.waited, self.read_at = 0, 0.0, time.monotonic()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to count the first batch's operations."""
        if self.flops is None:
            self.mode = self.counting.enter_context(Flops())

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        """Count the batch."""
        if self.flops is None:
            self.counting.close()
            self.flops = self.mode.total
        self.batches += 1

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        """Stop counting after an error."""
        self.counting.close()

    def take(self) -> dict[str, float]:
        """Return the figures since they were last read, and start anew.

        images_per_s over all devices; data_wait, the share of the time that this process waited for data; tflop_per_s of
        this device, and of_peak, what share of its stated peak that is, if it is known.
        """
        now = time.monotonic()
        seconds = max(now - self.read_at, 1e-9)
        figures = {"images_per_s": self.batches * self.plan.batch_size / seconds, "data_wait": self.waited / seconds}
        if self.flops is not None:
            rate = self.batches * self.flops / seconds
            figures["tflop_per_s"] = rate / 1e12
            if self.peak is not None:
                figures["of_peak"] = rate / self.peak
        self.batches, self.waited, self.read_at = 0, 0.0, now
        return figures


class Timed:
    """A loader whose batches tell a `Throughput` how long they took to come."""

    def __init__(self, loader: Iterable[Any], throughput: Throughput) -> None:
        self.loader, self.throughput = loader, throughput

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.throughput.waited += time.monotonic() - began
            yield batch
