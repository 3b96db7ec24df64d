"""The streaming runner: order, overlap, failures, memory."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from editkit.engine.stream import stream
from editkit.errors import UserError


class Store(dict):
    def write(self, item, result):
        self[item] = result


def doubled(samples):
    return [2 * sample for sample in samples]


def run(items, work=doubled, decode=lambda item: item, write=None, **arguments):
    store = Store()
    return store, list(stream(items, decode=decode, work=work, write=write or store.write, **arguments))


def failures(settled):
    return {item: str(error) for item, error in settled if error is not None}


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_all_items_are_worked_on_in_order(batch_size):
    sizes = []

    def work(samples):
        sizes.append(len(samples))
        return doubled(samples)

    store, settled = run(range(10), work, batch_size=batch_size)
    assert store == {n: 2 * n for n in range(10)} and settled == [(n, None) for n in range(10)]
    assert sizes == {1: [1] * 10, 4: [4, 4, 2], 100: [10]}[batch_size]


def test_no_items():
    assert run([]) == ({}, [])


def test_failures_are_collected_and_the_rest_goes_on():
    def decode(item):
        if item == 3:
            raise UserError("3 is broken")
        return item

    def work(samples):
        if 5 in samples:
            raise ValueError("5 cannot be worked on")
        return doubled(samples)

    store = Store()

    def write(item, result):
        if item == 7:
            raise OSError("7 cannot be written")
        store.write(item, result)

    _, settled = run(range(10), work, decode=decode, write=write, batch_size=4)
    assert sorted(store) == [0, 1, 2, 4, 6, 8, 9] and sorted(item for item, _ in settled) == list(range(10))
    assert failures(settled) == {3: "3 is broken", 5: "5 cannot be worked on", 7: "7 cannot be written"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_for_good(error):
    sizes = []

    def work(samples):
        sizes.append(len(samples))
        if len(samples) > 3:
            raise error
        return doubled(samples)

    store, settled = run(range(20), work, batch_size=8)
    assert store == {n: 2 * n for n in range(20)} and not failures(settled)
    assert set(sizes[3:]) == {2} and sizes[:3] == [8, 4, 2]


def test_an_item_that_never_fits_is_a_failure():
    sizes = []

    def work(samples):
        sizes.append(len(samples))
        if 2 in samples:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return doubled(samples)

    store, settled = run(range(4), work, batch_size=4)
    assert sorted(store) == [0, 1, 3] and list(failures(settled)) == [2] and sizes == [4, 2, 2, 1, 1]


def test_a_failed_try_holds_no_memory():
    """Easy wrong version: retrying inside `except`, whose traceback keeps the tensors of the failed try alive."""
    import weakref

    held = []

    class Big:
        pass

    def work(samples):
        assert not any(reference() is not None for reference in held), "the failed try is still alive"
        big = Big()
        held.append(weakref.ref(big))
        if len(samples) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        del big
        return doubled(samples)

    store, settled = run(range(4), work, batch_size=4)
    assert len(store) == 4 and not failures(settled)


def test_fixed_batches_always_have_the_same_shape():
    batches = []

    def work(samples):
        batches.append(list(samples))
        if 5 in samples:
            raise ValueError("5")
        return doubled(samples)

    store, settled = run(range(9), work, batch_size=4, batch_invariant=True)
    assert all(len(batch) == 4 for batch in batches) and [8, 8, 8, 8] in batches
    assert store == {n: 2 * n for n in range(9) if n != 5} and list(failures(settled)) == [5]


def test_fixed_batches_make_results_independent_of_the_company(backbone, images):
    """Padded to one shape, an image's result has the same bits whoever shares its batch."""

    def work(samples):
        with torch.no_grad():
            return list(backbone(torch.stack(samples), 500.0).x0)

    everyone, _ = run(range(3), work, decode=lambda n: images[n], batch_size=3, batch_invariant=True)
    alone, _ = run([1], work, decode=lambda n: images[n], batch_size=3, batch_invariant=True)
    assert torch.equal(everyone[1], alone[1])


def test_fixed_batches_that_do_not_fit_are_an_error_that_says_what_to_type():
    def work(samples):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"engine\.batch_size=4"):
        run(range(20), work, batch_size=8, batch_invariant=True)


def test_a_wrong_number_of_results_is_a_bug_and_raised():
    with pytest.raises(ValueError, match="1 results for 2"):
        run(range(2), lambda samples: samples[:1], batch_size=2)


def test_reading_and_writing_overlap_the_work():
    main = threading.get_ident()
    threads = {"decode": set(), "work": set(), "write": set()}

    def decode(item):
        threads["decode"].add(threading.get_ident())
        time.sleep(0.02)
        return item

    def work(samples):
        threads["work"].add(threading.get_ident())
        time.sleep(0.02 * len(samples))
        return samples

    def write(item, result):
        threads["write"].add(threading.get_ident())
        time.sleep(0.02)

    start = time.perf_counter()
    run(range(20), work, decode=decode, write=write, batch_size=2, threads=2)
    took = time.perf_counter() - start
    assert threads["work"] == {main} and main not in threads["decode"] | threads["write"]
    assert took < 0.8 * (20 * 0.06)  # one after the other: 1.2 s; the work alone: 0.4 s


def test_one_who_stops_asking_stops_the_work():
    worked = []
    for item, _ in stream(
        range(1000), decode=lambda n: n, work=lambda x: worked.append(x) or x, write=lambda *_: None, batch_size=4
    ):
        if item == 20:
            break
    assert len(worked) < 20


def test_memory_is_bounded():
    """Neither reading nor writing may run away from the work."""
    decoded, written = [], []

    def work(samples):
        assert len(decoded) - samples[0] <= 2 * 4 + 4
        return samples

    def write(item, result):
        time.sleep(0.002)
        written.append(item)

    def decode(item):
        decoded.append(item)
        return item

    run(range(200), work, decode=decode, write=write, batch_size=4)
    assert len(written) == 200


def test_an_interrupt_stops_at_once_and_keeps_what_is_written():
    store = Store()

    def work(samples):
        if samples[0] >= 8:
            raise KeyboardInterrupt
        return doubled(samples)

    def decode(item):
        time.sleep(0.2 if item >= 12 else 0)  # read ahead, and of no use to anyone after the interrupt
        return item

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run(range(1000), work, decode=decode, write=store.write, batch_size=4, threads=1)
    assert sorted(store) == list(range(8))
    assert time.perf_counter() - start < 1.2  # eight more reads would take 1.6 s


@pytest.mark.parametrize("invariant", [False, True])
def test_invariant_work_has_one_thread_and_gives_the_others_back(invariant):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)

    def work(samples):
        seen.append(torch.get_num_threads())
        if samples[0] == 2:
            raise ValueError("odd one")
        return samples

    try:
        run([1, 2], work=work, batch_size=1, batch_invariant=invariant)
        assert set(seen) == ({1} if invariant else {2}) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
