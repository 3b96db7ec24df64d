"""Learning rates that differ among the parameters of one group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from editkit.training.method import OptimizerFactory


def rated(factory: OptimizerFactory, rates: Sequence[tuple[Iterable[nn.Parameter], float]]) -> OptimizerFactory:
    """Return a factory of the same optimiser in which some parameters learn at multiples of its rate.

    A schedule that multiplies rates (LinearLR, LambdaLR, cosine) keeps the ratios; OneCycleLR gives all its own.

    Args:
        rates: parameters and their multiple; all others learn at the factory's rate.
    """
    multiple = {id(parameter): rate for parameters, rate in rates for parameter in parameters}

    def made(given: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in given:
            groups.setdefault(multiple.get(id(parameter), 1.0), []).append(parameter)
        ordered = sorted(groups, key=lambda rate: rate != 1)  # the group of the factory's own rate first
        optimizer = factory([{"params": groups[rate]} for rate in ordered])  # type: ignore[arg-type]
        for group, rate in zip(optimizer.param_groups, ordered, strict=True):
            group["lr"] *= rate
        return optimizer

    return made
