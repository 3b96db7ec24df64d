"""The generative process: a mixture of networks when editing, a short chain to differentiate when training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from editkit.backbones.base import Backbone
from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.mixture import Mixture
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.errors import UsageError
from editkit.types import Condition, Levels, Prediction

Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
Criterion = Callable[[Tensor], Losses]


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


@dataclass(frozen=True)
class Recomputed(Wrapper):
    """A denoiser whose calls keep their input alone and run again in the backward pass (activation checkpointing).

    The memory of a chain then hardly grows with its length, for a third more time.
    """

    denoiser: Denoiser

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict; what the network says beside x0 and eps is left out."""

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            pred = self.denoiser(x, t, cond)
            return pred.x0, pred.eps

        return Prediction(*checkpoint(run, x, use_reentrant=False))


def unrolled(network: Denoiser, levels: Levels, x: Tensor, criterion: Criterion) -> Iterator[Losses]:
    """Yield one loss, of the image at the chain's end: its gradient goes through all calls ("quick" in the released code).

    Args:
        network: what is trained.
        levels: the chain; all of it is walked.
        x: states at the noisiest level, (B, C, H, W).
        criterion: the losses of a state without noise.
    """
    yield criterion(sample(network, x, levels))


def stepwise(network: Denoiser, levels: Levels, x: Tensor, criterion: Criterion) -> Iterator[Losses]:
    """Yield a loss for every call, of its one-step estimate f(x_t, t); no gradient crosses calls ("efficient").

    The next state is what the network said before the update that the loss leads to. Our departure: the identity term
    is of f(x_t, t) as well. The released code measures it on the next state, which is detached, so that it has no gradient.

    Args:
        network: what is trained.
        levels: the chain.
        x: states at the noisiest level, (B, C, H, W).
        criterion: the losses of an estimate.
    """
    for i in range(len(levels) - 1, 0, -1):
        pred = network(x, levels.times[i])
        x = ddim(levels, i, i - 1, x, pred, (), None).detach()
        yield criterion(pred.x0)


CHAINS = {"unrolled": unrolled, "stepwise": stepwise}
