"""What the benchmarks share: times of two sides in turn, the machine in words, and where a table goes."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import diffusers
import torch

from editkit.app.markdown import check_marks, insert
from editkit.errors import UserError


def in_turn(sides: Sequence[Callable[[], object]], repeats: int, device: torch.device | str = "cpu") -> list[float]:
    """Return each side's median seconds; they take turns, so that whatever slows the machine slows all. One round warms up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats + 1):
        for times, run in zip(seconds, sides, strict=True):
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            times.append(time.perf_counter() - began)
    return [statistics.median(times[1:]) for times in seconds]


def wait(device: torch.device | str) -> None:
    """Wait until a device has done what it was asked."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device | str = "cpu") -> str:
    """Return what ran, in words: the processor with its threads or the card, versions, the day."""
    cuda = torch.device(device).type == "cuda"
    what = torch.cuda.get_device_name(device) if cuda else f"{threads()} of {_processor()}"
    return f"{what}, torch {torch.__version__}, diffusers {diffusers.__version__}, {time.strftime('%Y-%m-%d')}."


def threads() -> str:
    """Return the number of torch's threads, in words."""
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def positive(text: str) -> int:
    """Read a number of things that there must be one of at least, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: give 1 or more")
    return number


def publish(parser: argparse.ArgumentParser, mark: str, path: Path | None, measure: Callable[[], str]) -> None:
    """Measure, print the table and put it between the marks of a Markdown file, which is looked at before the long work."""
    try:
        if path is not None:
            check_marks(path, mark)
        text = measure()
        print(text)
        if path is not None:
            insert(path, mark, text)
    except UserError as error:
        parser.error(str(error))


def _processor() -> str:
    try:
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
