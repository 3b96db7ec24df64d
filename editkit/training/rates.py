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
        everything = list(given)
        fast = [parameter for parameter in everything if id(parameter) not in slow]
        rest = [parameter for parameter in everything if id(parameter) in slow]
        if not fast or not rest:
            return factory(everything)
        optimizer = factory(fast)
        optimizer.add_param_group({"params": rest, "lr": rate * optimizer.defaults["lr"]})
        return optimizer

    return made
