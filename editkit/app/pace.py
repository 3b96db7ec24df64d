"""How fast a folder is edited, and how much of its device that uses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from editkit.engine.count import Flops
from editkit.training.progress import arithmetic

Sample = TypeVar("Sample")
Result = TypeVar("Result")
Work = Callable[[Sequence[Sample]], list[Result]]


@dataclass
class Pace:
    """Measures the work on batches; the floating-point operations are counted once, in the first one.

    Attributes:
        peak: of the device, FLOP/s; None if it is not known.
        flops: operations of one picture; None if they were not counted.
        images: pictures that were worked on.
        working: seconds spent on them; the rest went into reading and writing.
    """

    peak: float | None = None
    flops: float | None = None
    images: int = 0
    working: float = 0.0

    def timed(
        self, work: Callable[[Sequence[Sample]], list[Result]], *, count: bool
    ) -> Callable[[Sequence[Sample]], list[Result]]:
        """Return the same work, measured.

        Args:
            count: also count operations, which compiled layers do not stand: they would not be compiled in that batch.
        """

        def run(samples: Sequence[Sample]) -> list[Result]:
            first = count and self.flops is None
            began = time.monotonic()
            with Flops() if first else contextlib.nullcontext() as counted:
                results = work(samples)
            self.working += time.monotonic() - began
            self.images += len(samples)
            if counted is not None:
                self.flops = counted.total / len(samples)
            return results

        return run

    def line(self, seconds: float) -> str:
        """Return all that in a few words, for a folder that took so many seconds; "" if nothing was worked on."""
        if not self.images:
            return ""
        words = f"{pace(self.images, seconds)}, {self.working / seconds:.0%} of the time computing"
        if not self.flops:
            return words
        rate = self.flops * self.images / self.working
        return f"{words} at {arithmetic(rate, rate / self.peak if self.peak else None)}"


def pace(images: int, seconds: float) -> str:
    """Return "12 images in 3 s, 4/s" or, where one takes longer, "... s each"; "" for none."""
    if not images:
        return ""
    rate = f"{images / seconds:.1f}/s" if images >= seconds else f"{seconds / images:.1f} s each"
    return f"{images} image{'s' if images > 1 else ''} in {seconds:.0f} s, {rate}"
