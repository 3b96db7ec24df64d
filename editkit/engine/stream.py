"""Working through many items: read in threads, work in batches, write in a thread, survive what fails.

    decode(item) -> sample        in threads, ahead of the work
    work([sample...]) -> [result...]   in the calling thread, one batch at a time
    write(item, result)           in a thread, behind the work

An item that fails is yielded with its error; the others go on. Out of memory halves the batch for good.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Generic, TypeVar

import torch

from editkit.errors import UserError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Sample = TypeVar("Sample")
Result = TypeVar("Result")


def stream(
    items: Iterable[Item],
    *,
    decode: Callable[[Item], Sample],
    work: Callable[[list[Sample]], Sequence[Result]],
    write: Callable[[Item, Result], None],
    batch_size: int = 16,
    batch_invariant: bool = False,
    threads: int = 2,
) -> Iterator[tuple[Item, Exception | None]]:
    """Decode, work and write all items, each stage overlapping the others; memory is bounded by a few batches.

    Yields each item once it is written, or with the error that it failed by. To be used up: the work goes on as far as
    it is asked.

    Args:
        items: what to work on; read as far ahead as two batches.
        decode: reads one item.
        work: turns samples into as many results, in their order; called where the stream is used up.
        write: stores one result.
        batch_size: samples per call of `work`; halved whenever memory runs out.
        batch_invariant: pad every batch to `batch_size` by repeating its last sample and drop the surplus results, so
            that every call has the same shape, and compute on one processor thread, for several share sums out in another
            order; then running out of memory is an error.
        threads: number of decoding threads.

    Raises:
        UserError: out of memory although batch_invariant forbids a smaller batch.
    """
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(1) as writer:
        run: _Run[Item, Sample, Result] = _Run(work, write, writer, batch_size, batch_invariant)
        try:
            batch: list[tuple[Item, Sample]] = []
            for item, future in _ahead(items, decode, readers, depth=2 * batch_size):
                error = future.exception()
                if error is None:
                    batch.append((item, future.result()))
                elif isinstance(error, Exception):
                    yield item, error
                else:
                    raise error
                if len(batch) >= run.batch_size:
                    yield from run.process(batch)
                    batch = []
            yield from run.process(batch)
            yield from run.drain(keep=0)
        except BaseException:
            readers.shutdown(wait=False, cancel_futures=True)
            raise


class _Run(Generic[Item, Sample, Result]):
    """The middle and the end of a stream: batches through `work`, results to the writer."""

    def __init__(
        self,
        work: Callable[[list[Sample]], Sequence[Result]],
        write: Callable[[Item, Result], None],
        writer: ThreadPoolExecutor,
        batch_size: int,
        invariant: bool,
    ) -> None:
        self.work, self.write, self.writer, self.batch_size = work, write, writer, batch_size
        self.fixed = batch_size if invariant else None
        self.pending: deque[tuple[Item, Future[None]]] = deque()

    def process(self, batch: Sequence[tuple[Item, Sample]]) -> Iterator[tuple[Item, Exception | None]]:
        """Work on a batch, in parts where memory runs out, one by one where an item fails; yield what is settled."""
        left = list(batch)
        while left:
            part = left[: self.batch_size]
            results = self._attempt([sample for _, sample in part])
            if isinstance(results, Exception) and _out_of_memory(results):
                self._shrink(len(part), results)
                _release_memory()
                if len(part) > 1:
                    continue
            left = left[len(part) :]
            if not isinstance(results, Exception):
                for (item, _), result in zip(part, results, strict=True):
                    self.pending.append((item, self.writer.submit(self.write, item, result)))
                yield from self.drain(keep=2 * self.batch_size)
            elif len(part) == 1:
                yield part[0][0], results
            else:
                for one in part:  # alone, an item's failure is its own
                    yield from self.process([one])

    def drain(self, keep: int) -> Iterator[tuple[Item, Exception | None]]:
        """Wait for writes until at most `keep` are pending; yield those that ended."""
        while len(self.pending) > keep or (self.pending and self.pending[0][1].done()):
            item, future = self.pending.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            yield item, error

    def _attempt(self, samples: list[Sample]) -> Sequence[Result] | Exception:
        """Return the results or the error, whose traceback is dropped: its frames hold the tensors of the failed try."""
        count = len(samples)
        if self.fixed is not None:
            samples = samples + [samples[-1]] * (self.fixed - count)
        try:
            with nullcontext() if self.fixed is None else one_thread():
                results = self.work(samples)
        except Exception as error:
            return error.with_traceback(None)
        if len(results) != len(samples):
            raise ValueError(f"work returned {len(results)} results for {len(samples)} samples")
        return results[:count]

    def _shrink(self, tried: int, error: Exception) -> None:
        if self.fixed is not None:
            raise UserError(
                f"a fixed batch of {self.fixed} does not fit into memory: set engine.batch_size={max(self.fixed // 2, 1)} "
                "or engine.batch_invariant=false"
            ) from error
        self.batch_size = max(min(self.batch_size, tried // 2), 1)
        log.warning("out of memory with %d images at once: going on with %d", tried, self.batch_size)


def _ahead(
    items: Iterable[Item], decode: Callable[[Item], Sample], readers: ThreadPoolExecutor, depth: int
) -> Iterator[tuple[Item, Future[Sample]]]:
    queue: deque[tuple[Item, Future[Sample]]] = deque()
    for item in items:
        queue.append((item, readers.submit(decode, item)))
        if len(queue) >= depth:
            yield queue.popleft()
    while queue:
        yield queue.popleft()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread while the context is open: several share sums out in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # what the CPU allocator says


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
