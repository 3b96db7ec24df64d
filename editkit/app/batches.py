"""The loop of a folder: read ahead, work in batches, write behind; a bad item costs itself and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Generic, TypeVar

import torch

from editkit.errors import UserError

Item = TypeVar("Item")
Ready = TypeVar("Ready")
Result = TypeVar("Result")


class Batches(Generic[Item, Ready, Result]):
    """Carries items through three stages.

    Args:
        read: makes an item ready (decode, resize); runs in a thread. None says that nothing is left to do.
        work: turns a batch of ready items into their results, in order.
        write: takes one ready item with its result to the disk; runs in a thread.
        failed: called with an item and the reason when one of its stages fails.
        size: ready items at once; halved for good when memory runs out.
    """

    def __init__(
        self,
        read: Callable[[Item], Ready | None],
        work: Callable[[Sequence[Ready]], Sequence[Result]],
        write: Callable[[Ready, Result], None],
        failed: Callable[[Item, str], None],
        *,
        size: int,
    ) -> None:
        self.read, self.work, self.write, self.failed, self.size = read, work, write, failed, max(1, size)

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield each item when all is done for it, failed or not, in about their order.

        Raises:
            UserError: the results cannot be written (a full disk fails them all alike), or memory lacks for a single item.
        """
        with ThreadPoolExecutor(2) as reader, ThreadPoolExecutor(1) as writer:
            source = iter(items)
            ahead = [(item, reader.submit(self.read, item)) for item in islice(source, 2 * self.size)]
            behind: list[tuple[Item, Future[None]]] = []
            while ahead:
                batch: list[tuple[Item, Ready]] = []
                while ahead and len(batch) < self.size:
                    item, future = ahead.pop(0)
                    ahead += [(more, reader.submit(self.read, more)) for more in islice(source, 1)]
                    ready = self._settle(item, future)
                    if ready is None:
                        yield item
                    else:
                        batch.append((item, ready))
                for item, ready, result in self._worked(batch):
                    if result is None:
                        yield item
                    else:
                        behind.append((item, writer.submit(self.write, ready, result)))
                while behind and (behind[0][1].done() or len(behind) > 2 * self.size or not ahead):
                    item, written = behind.pop(0)
                    written.result()
                    yield item

    def _settle(self, item: Item, future: Future[Ready | None]) -> Ready | None:
        try:
            return future.result()
        except UserError as error:
            self.failed(item, str(error))
            return None

    def _worked(self, batch: Sequence[tuple[Item, Ready]]) -> Iterator[tuple[Item, Ready, Result | None]]:
        """Yield the results of a batch; on an error its items go again, fewer at a time, so that only bad ones are lost."""
        if not batch:
            return
        try:
            results = self.work([ready for _, ready in batch])
        except Exception as error:
            if len(batch) > 1:
                if isinstance(error, torch.OutOfMemoryError):
                    self.size = max(1, len(batch) // 2)
                    with suppress(RuntimeError):
                        torch.cuda.empty_cache()
                for start in range(0, len(batch), max(1, len(batch) // 2)):
                    yield from self._worked(batch[start : start + max(1, len(batch) // 2)])
                return
            item, ready = batch[0]
            self.failed(item, _reason(error))
            yield item, ready, None
            return
        for (item, ready), result in zip(batch, results, strict=True):
            yield item, ready, result


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
