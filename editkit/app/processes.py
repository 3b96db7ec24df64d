"""Shares of one work, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar

import torch

from editkit.errors import UserError

T = TypeVar("T")


def spread(
    work: Callable[..., Iterator[T]], shares: Sequence[tuple[Any, ...]], tick: Callable[[], None] = lambda: None
) -> list[list[T]]:
    """Return all that `work(*share)` yields for each share; the shares run at once, in new processes that split the cores.

    No process outlives the call, whatever ends it. To be called from the main thread.

    Args:
        work: a function that can be pickled, as its arguments and results.
        shares: its arguments, one tuple for each process.
        tick: called here after each result.

    Raises:
        UserError: one that `work` raised, or a process that ended before its work was done.
        MemoryError: raised by `work`.
    """
    processes: dict[Connection, BaseProcess] = {}
    results: dict[Connection, list[T]] = {}
    try:
        for share in shares:
            end, process = _started(work, share, len(shares))
            processes[end], results[end] = process, []
        running = set(processes)
        while running:
            for end in wait(list(running)):
                if _receive(end, processes[end], results[end]):
                    tick()
                else:
                    running.remove(end)
        return list(results.values())
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


def _started(work: Callable[..., Any], share: tuple[Any, ...], count: int) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // count)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(work, share, threads, sending), daemon=True)
    with _interrupts_ignored():  # what the process inherits: Ctrl-C is for the first one, which ends the others
        process.start()
    sending.close()
    return receiving, process


def _receive(end: Any, process: BaseProcess, results: list[Any]) -> bool:
    """Take the next result of a process; False once it has no more."""
    try:
        found = pickle.loads(end.recv_bytes())
    except EOFError:
        process.join()
        if process.exitcode:
            killed = f"was killed by signal {-process.exitcode}, mostly for lack of memory: try fewer --jobs"
            reason = killed if process.exitcode < 0 else "failed; its own error is above"
            raise UserError(f"a process of the run {reason}") from None
        return False
    if isinstance(found, Exception):
        raise found
    results.append(found)
    return True


def _serve(work: Callable[..., Iterator[Any]], share: tuple[Any, ...], threads: int, end: Connection) -> None:
    """Do a share; results go as plain pickles, for `send` would keep an open file for each tensor."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer
    try:
        for result in work(*share):
            end.send_bytes(pickle.dumps(result))
    except (UserError, MemoryError) as error:
        end.send_bytes(pickle.dumps(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
