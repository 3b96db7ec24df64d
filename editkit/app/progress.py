"""What a person sees of long work: a bar with rate and time left, remarks as they come, and what failed at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

T = TypeVar("T")

# Failures shown in full; the rest stay in the list beside the results.
SHOWN = 20


class Progress:
    """A bar on stderr (only on a terminal, for more than one thing, in the process that was started first) and lines around it.

    Results go to stdout, one path a line, so that they can be piped; remarks go to stderr.
    """

    def __init__(self, total: int, *, unit: str = "images") -> None:
        self.remarks = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self.results = Console(soft_wrap=True, highlight=False, markup=False)
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
        seen = total > 1 and self.remarks.is_terminal and parent_process() is None
        self.bar = Bar(*columns, console=self.remarks, disable=not seen, transient=True)
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def advance(self) -> None:
        """Count one more as done."""
        self.bar.advance(self.task)

    def counted(self, things: Iterable[T]) -> Iterator[T]:
        """Yield things as they come and count each as done."""
        for one in things:
            self.advance()
            yield one

    def note(self, line: str) -> None:
        """Show a remark above the bar, if there is one."""
        if line:
            self.remarks.print(line)

    def wrote(self, paths: Sequence[Path]) -> None:
        """Name files that were written."""
        for path in paths:
            self.results.print(str(path))

    def summary(self, folder: Path, *, done: int, failed: Mapping[str, str], listed: str) -> None:
        """Say how a folder went, and what failed and why; `listed` is the file that has the whole list."""
        for key, reason in list(failed.items())[:SHOWN]:
            self.note(f"failed: {key}: {reason}")
        if len(failed) > SHOWN:
            self.note(f"and {len(failed) - SHOWN} more, listed in {folder / listed}")
        if failed:
            self.note(f"{done} of {done + len(failed)} done, {len(failed)} failed; the same command tries the failed ones again")
        self.wrote([folder])


def remark(line: str) -> None:
    """Show a line on stderr, apart from any bar."""
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(line)


class _Rate(ProgressColumn):
    """Pieces a second, or seconds a piece when it takes longer."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s/{self.unit.rstrip('s')}")
