"""Two ways to train a network on its way back from noise: through the whole chain, or after each of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.types import Condition, Levels, Prediction

Losses = tuple[dict[str, Tensor], dict[str, Tensor]]
Criterion = Callable[[Tensor], Losses]


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
