"""Which image comes when depends on the seed and the position alone."""

from __future__ import annotations

import itertools

import torch

from editkit.training.order import Order, Positioned, batches
from tests.training.toys import Numbers


def indices(order, count):
    return [[index for _, index in batch] for batch in itertools.islice(order, count)]


def test_every_epoch_shows_every_image_once_in_another_order():
    flat = list(itertools.chain(*indices(Order(10, batch_size=4, seed=0), 5)))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert flat != list(itertools.chain(*indices(Order(10, batch_size=4, seed=1), 5)))


def test_starting_in_the_middle_continues_the_same_order():
    whole = indices(Order(10, batch_size=4, seed=0), 8)
    assert indices(Order(10, batch_size=4, seed=0, start=12), 5) == whole[3:]


def test_processes_share_out_the_same_batches():
    whole = indices(Order(10, batch_size=4, seed=0), 6)
    shares = [indices(Order(10, batch_size=4, seed=0, rank=rank, world=2), 6) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole


def test_images_that_are_read_together_come_near_to_each_other():
    blocks = [3, 4, 1, 4, 4]
    order = list(itertools.chain(*indices(Order(16, batch_size=4, seed=0, blocks=blocks), 8)))
    assert sorted(order[:16]) == sorted(order[16:]) == list(range(16)) and order[:16] != order[16:]
    owner = [block for block, count in enumerate(blocks) for _ in range(count)]
    for epoch in (order[:16], order[16:]):
        seen = [owner[index] for index in epoch]
        spans = {block: (seen.index(block), 16 - seen[::-1].index(block)) for block in owner}
        assert all(end - start <= 8 for start, end in spans.values())  # two blocks of four at the most
    assert seen != sorted(seen) and any(a > b for a, b in itertools.pairwise(epoch)), "within blocks it is mixed, too"


def test_one_block_is_the_order_without_blocks():
    assert indices(Order(10, batch_size=4, seed=3, blocks=[10]), 6) == indices(Order(10, batch_size=4, seed=3), 6)


def test_a_batch_larger_than_the_data_set_repeats_it():
    (batch,) = indices(Order(3, batch_size=6, seed=0), 1)
    assert sorted(batch[:3]) == sorted(batch[3:]) == [0, 1, 2]


def test_augmentation_depends_on_the_position_and_leaves_the_generators_alone():
    items = Positioned(Numbers(), seed=0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, later = items[3, 5]["image"], items[3, 5]["image"], items[13, 5]["image"]
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert torch.equal(torch.get_rng_state(), before)


def test_worker_processes_change_nothing():
    def keys_and_images(num_workers):
        loader = batches(Numbers(), Order(10, batch_size=4, seed=0), num_workers=num_workers)
        found = [(batch["key"], batch["image"]) for batch in itertools.islice(loader, 4)]
        return [key for key, _ in found], torch.stack([image for _, image in found])

    torch.manual_seed(2)
    before = torch.get_rng_state()
    own, helped = keys_and_images(0), keys_and_images(2)
    assert own[0] == helped[0] and torch.equal(own[1], helped[1])
    assert torch.equal(torch.get_rng_state(), before)
