"""A run without noise, as a script: python -m tests.training.two_processes FOLDER DEVICES [RANK READS].

The process RANK kills itself when it reads its item number READS.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from editkit.training.fit import fit
from editkit.training.method import Method, Update
from editkit.training.plan import Plan
from editkit.training.rundir import RunDir

STEPS = 12  # optimiser steps, of six batches


class Pair(Method):
    """Two groups, each stepped twice a batch; the losses depend on the images alone."""

    def __init__(self) -> None:
        super().__init__(optimizer=functools.partial(torch.optim.SGD, lr=0.05))
        torch.manual_seed(0)
        self.frozen, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def trainable(self):
        return {"a": self.a.parameters(), "b": self.b.parameters()}

    def updates(self, batch):
        x = batch["image"]
        for _ in range(2):
            yield Update("a", {"a": (self.a(self.frozen(x)) - x).square().mean(1)})
            yield Update("b", {"b": (self.b(self.a(x).detach()) - x).square().mean(1)})


class Ramps:
    """Eight different items without randomness; reading too many of them is fatal."""

    def __init__(self, last: int | None = None) -> None:
        self.left = last

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return {"image": torch.linspace(-1, 1, 4) * (index + 1) / 8 + index % 3, "key": str(index)}


def main(folder: str, devices: int, fatal: int | None = None, reads: int = 0) -> None:
    plan = Plan(steps=STEPS, batch_size=4, accumulate=2, devices=devices, accelerator="cpu", log_every=1, ema=0.9, save_every_s=0)
    own = int(os.environ.get("LOCAL_RANK", "0"))
    fit(Pair(), Ramps(reads if own == fatal else None), plan, RunDir(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
