"""Several denoisers as one: a weighted mean of what they predict, with weights per image and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.lanes import select
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class Mixture(Wrapper):
    """eps = sum over n of share_n * eps_n, and x0 alike, which is the same, for x0 is linear in eps.

    Each denoiser is called once a level, for those images alone that it has a share in.

    Attributes:
        denoiser: the first one, whose schedule all share.
        others: the rest of them.
        shares: from a time to the share of each denoiser in each image, (B, 1 + N), the first one's first; rows sum to 1.
    """

    denoiser: Denoiser
    others: Sequence[Denoiser]
    shares: Callable[[float], Tensor]

    def calls(self, levels: Levels) -> list[float]:
        """Return the network calls of each image on the way down."""
        return torch.stack([(self.shares(t) != 0).sum(1) for t in levels.times[1:]]).sum(0).double().tolist()

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict for x (B, C, H, W) at one time t; an image with one denoiser of share 1 gets that one's own bits."""
        shares = self.shares(float(t))
        x0, eps = torch.zeros_like(x), torch.zeros_like(x)
        for n, denoiser in enumerate((self.denoiser, *self.others)):
            rows = shares[:, n].nonzero().flatten()
            if not len(rows):
                continue
            share, place = shares[rows, n].to(x.device)[:, None, None, None], rows.to(x.device)
            pred = denoiser(x[place], t, select(cond, rows))
            x0, eps = x0.index_add(0, place, share * pred.x0), eps.index_add(0, place, share * pred.eps)
        return Prediction(x0, eps)
