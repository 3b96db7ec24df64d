"""Which images a run sees, and when: a function of the seed and the number of images seen so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from editkit.data.items import collate
from editkit.training.randomness import derive, isolated


class Order(Sampler[list[tuple[int, int]]]):
    """Endless batches of (position, index), one process's share of each.

    Position p lies in epoch p // length, and each epoch has its own permutation; a batch may span two epochs. The order does not
    depend on the number of processes, and it starts anywhere.

    Args:
        length: images in the data set.
        batch_size: images of a batch over all processes.
        start: images seen before.
        blocks: numbers of images that are read from a file together, which then come near to each other (see `shuffled`).
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        blocks: Sequence[int] = (),
    ) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self.rank, self.world, self.blocks = rank, world, blocks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world
        first = self.start + self.rank * share
        epoch, permutation = -1, []
        while True:
            batch = []
            for position in range(first, first + share):
                if position // self.length != epoch:
                    epoch = position // self.length
                    permutation = self._permutation(epoch)
                batch.append((position, permutation[position % self.length]))
            yield batch
            first += self.batch_size

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return shuffled(self.blocks or (self.length,), generator)


def shuffled(blocks: Sequence[int], generator: torch.Generator) -> list[int]:
    """Return all indices in a random order, those of a block near to each other: two blocks at a time are mixed.

    Args:
        blocks: lengths of the consecutive blocks; of one block this is a plain permutation.
    """
    if len(blocks) == 1:
        return torch.randperm(blocks[0], generator=generator).tolist()
    starts = [0, *accumulate(blocks)]
    order = torch.randperm(len(blocks), generator=generator).tolist()
    indices: list[int] = []
    for k in range(0, len(order), 2):
        mixed = [index for block in order[k : k + 2] for index in range(starts[block], starts[block + 1])]
        indices += [mixed[place] for place in torch.randperm(len(mixed), generator=generator).tolist()]
    return indices


class Positioned(Dataset[Any]):
    """A data set asked by (position, index): its random augmentation depends on the seed and the position alone.

    So an item is the same whatever process reads it and however far reading runs ahead of training.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, at: tuple[int, int]) -> Any:
        position, index = at
        with isolated(derive(self.seed, "item", position)):
            return self.dataset[index]


def batches(dataset: Any, order: Order, *, num_workers: int, pin_memory: bool = False) -> DataLoader[Any]:
    """Return the loader of a run's batches."""
    return DataLoader(
        Positioned(dataset, order.seed),
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        generator=torch.Generator().manual_seed(order.seed),  # else the loader would draw from the global one
    )
