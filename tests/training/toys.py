"""A method so small that a whole run takes a fraction of a second."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from editkit.training.method import Method, Update
from editkit.training.plan import Plan
from editkit.training.stepper import Stepper


class Copy(Method):
    """Learns to undo a frozen layer under noise."""

    def __init__(self, *, width: int = 4, updates_a_batch: int = 1, **factories: Any) -> None:
        super().__init__(**{"optimizer": functools.partial(torch.optim.Adam, lr=0.01), **factories})
        self.frozen = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.5))
        self.net = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        self.updates_a_batch = updates_a_batch

    def trainable(self) -> dict[str, Any]:
        return {"net": self.net.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        x = batch["image"]
        return {"l2": (self.net(self.frozen(x) + 0.1 * torch.randn_like(x)) - x).square().mean(1)}

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        for _ in range(self.updates_a_batch):
            yield Update("net", self.loss(batch))

    def dummy_batch(self) -> dict[str, Any]:
        return {"image": torch.arange(8.0).view(2, 4) / 8, "key": ["a", "b"]}

    def sample_grid(self) -> Tensor:
        return torch.rand(5, 3, 4, 4) * 2 - 1


class Numbers:
    """Items with random augmentation from the global generators."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.full((4,), index / 10) + 0.01 * torch.randn(4), "key": str(index)}


def start(method: Method, **plan: Any) -> Stepper:
    """Give a method its stepper, as `fit` does."""
    method.freeze_rest()
    method.train()
    method.stepper = Stepper(method, Plan(**plan))
    method.stepper.make_optimizers()
    return method.stepper


def new(seed: int = 0, **arguments: Any) -> Copy:
    torch.manual_seed(seed)
    return Copy(**arguments)
