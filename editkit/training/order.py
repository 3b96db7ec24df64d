"""Which images a run sees, and when: a function of the seed and the number of images seen so far."""

from __future__ import annotations

from collections.abc import Iterator
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
    """

    def __init__(self, length: int, *, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self.rank, self.world = rank, world

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
        return torch.randperm(self.length, generator=generator).tolist()


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
