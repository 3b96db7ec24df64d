"""Signals as a flag that training polls between batches."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # SIGUSR2: SLURM's warning before the end of a job


class StopFlag:
    """Remembers the first signal; a second interrupt from the keyboard ends the process at once."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Start catching (in the main thread only; elsewhere python allows no handlers)."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in CAUGHT}

    def remove(self) -> None:
        """Put the former handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = self.caught or signal.Signals(number)
