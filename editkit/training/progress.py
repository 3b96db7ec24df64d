"""How a run shows its progress: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0
WAITING = 0.05  # share of the time from which waiting for data is worth a word


class Display:
    """Shows position, rate and time left.

    Args:
        title: what is being done.
        total: the length in `unit`.
        start: where a resumed run begins, so that the rate counts only what this process did.
    """

    def __init__(self, title: str, *, total: int, unit: str, start: int = 0, console: Console | None = None) -> None:
        self.title, self.total, self.unit, self.start = title, total, unit, start
        self.console = console or Console(stderr=True)
        self.began = self.said = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self.console)
            self.task = self.bar.add_task(title, total=total, completed=start, figures="")
            self.bar.start()

    def show(self, position: int, figures: Mapping[str, float] | None = None) -> None:
        """Move to `position`, with `figures` of the last log beside it; without a bar, only calls with figures say anything."""
        if self.bar is not None:
            self.bar.update(self.task, completed=min(position, self.total))
            if figures:
                self.bar.update(self.task, figures=brief(figures))
        elif figures is not None and (time.monotonic() - self.said >= LINE_EVERY_S or position >= self.total):
            self.said = time.monotonic()
            self.console.print(self._line(position, figures), highlight=False, soft_wrap=True)

    def _line(self, position: int, figures: Mapping[str, float]) -> str:
        seconds = time.monotonic() - self.began
        rate = (position - self.start) / max(seconds, 1e-9)
        left = max(self.total - position, 0) / rate if rate else float("inf")
        words = (f"{self.title}: {position}/{self.total} {self.unit}", f"{rate:.2g}/s", f"{clock(left)} left", brief(figures))
        return ", ".join(word for word in words if word)

    def say(self, message: str) -> None:
        """Print a line without disturbing the bar."""
        self.console.print(message, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()


def brief(figures: Mapping[str, float]) -> str:
    """Return the losses and the rate in a few words."""
    shown = [f"{name.removeprefix('loss/')} {value:.4g}" for name, value in figures.items() if name.startswith("loss")]
    if "images_per_s" in figures:
        shown.append(f"{figures['images_per_s']:.4g} images/s")
    if "tflop_per_s" in figures:
        shown.append(arithmetic(1e12 * figures["tflop_per_s"], figures.get("of_peak")))
    if figures.get("data_wait", 0) >= WAITING:
        shown.append(f"waiting for data {figures['data_wait']:.0%} of the time: raise trainer.num_workers")
    return " ".join(shown)


def arithmetic(rate: float, of_peak: float | None = None) -> str:
    """Return floating-point operations a second, and which share of the peak that is if it is known."""
    share = f" ({of_peak:.0%} of the peak)" if of_peak is not None else ""
    return f"{rate / 1e12:.3g} TFLOP/s{share}" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s{share}"


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss or m:ss."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
