"""Learning rates that differ among the parameters of one group."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from editkit.training.method import OptimizerFactory


def slower(factory: OptimizerFactory, parameters: Iterable[nn.Parameter], rate: float) -> OptimizerFactory:
    """Return a factory of the same optimiser in which some parameters learn at `rate` times the rate.

    A schedule that multiplies rates (LinearLR, LambdaLR, cosine) keeps the ratio; OneCycleLR gives all its own.
    """
    slow = {id(parameter) for parameter in parameters}

    def made(given: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        fast: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for parameter in given:
            (rest if id(parameter) in slow else fast).append(parameter)
        optimizer = factory(fast or rest)
        if not fast:
            for group in optimizer.param_groups:
                group["lr"] *= rate
        elif rest:
            optimizer.add_param_group({"params": rest, "lr": rate * optimizer.defaults["lr"]})
        return optimizer

    return made
