"""Fine-tuned copies of a backbone, and how several of them share the work of an edit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.denoiser import Denoiser
from editkit.engine.mixture import Mixture
from editkit.errors import UsageError


@dataclass(frozen=True)
class Checkpoint:
    """A fine-tuned copy of the backbone.

    Attributes:
        name: what a person calls it.
        network: the copy.
        t0: the time from which it was trained to come back.
        strength: factor on every strength that a request asks for.
    """

    name: str
    network: Backbone
    t0: int
    strength: float = 1.0


@dataclass(frozen=True)
class Mix:
    """How several fine-tuned networks share the work, by model time.

    Attributes:
        rows: (threshold, one weight a network), the highest threshold first; a time takes the first row that it reaches.
            Only the ratios of a row's weights matter.
    """

    rows: tuple[tuple[float, tuple[float, ...]], ...]

    @classmethod
    def read(cls, mix: Mapping[float, Sequence[float]] | None, count: int) -> Mix:
        """Return the mix of `count` networks from {threshold: weights}; None gives all of them the same weight always.

        Raises:
            UsageError: times without a row, a row of another length, negative weights, or none above 0.
        """
        given = {0.0: [1.0] * count} if mix is None else {float(t): list(row) for t, row in mix.items()}
        if min(given, default=math.inf) > 0:
            raise UsageError(f"method.mix={mix} has no row for the times down to 0: add one, such as {{300: [1, 0], 0: [0, 1]}}")
        for t, row in given.items():
            if len(row) != count:
                raise UsageError(f"method.mix has {len(row)} weights at {t:g} but {count} trained files are used: give one each")
            if min(row) < 0 or sum(row) <= 0:
                raise UsageError(f"method.mix has the weights {row} at {t:g}: none may be negative, and one must be above 0")
        return cls(tuple((t, tuple(map(float, given[t]))) for t in sorted(given, reverse=True)))

    def at(self, t: float) -> Tensor:
        """Return the weights at time t, (k,), in float64."""
        row = next(weights for threshold, weights in self.rows if t >= threshold)
        return torch.tensor(row, dtype=torch.float64)


def mixed(original: Denoiser, checkpoints: Sequence[Checkpoint], mix: Mix, strengths: Tensor) -> Mixture:
    """Return the original and the fine-tuned networks as one denoiser: the paper's degree of change and noise combination.

    At strength 1 the original network is not asked.

    Args:
        original: the frozen network.
        checkpoints: the fine-tuned ones.
        mix: their weights by time.
        strengths: (B,), 0 = the original network, 1 = the fine-tuned ones.
    """
    factors = torch.tensor([one.strength for one in checkpoints], dtype=torch.float64)
    strengths = strengths.double()[:, None]

    def shares(t: float) -> Tensor:
        weights = mix.at(t)
        own = factors * weights
        return torch.cat([1 - strengths * (own.sum() / weights.sum()), strengths * (own / weights.sum())], 1).float()

    return Mixture(original, [one.network for one in checkpoints], shares)
