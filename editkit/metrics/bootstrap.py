"""How sure a difference between two methods is, when both edited the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """The mean difference a - b over `pairs` images with its percentile bootstrap interval; nan without pairs."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def above(self) -> bool:
        """Whether a is above b: the whole interval is over 0."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether a is below b: the whole interval is under 0."""
        return self.high < 0


def paired_difference(a: Tensor, b: Tensor, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Return the mean of a - b, one value per image each (N,), and its interval.

    Images are resampled, not methods, so what makes an image hard cancels out. Pairs with a nan are left out.

    Raises:
        ValueError: the two do not have one value for each of the same images.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired values need the same images in both, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    differences = (a - b).double().numpy()
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    if n == 0:
        return Difference(float("nan"), float("nan"), float("nan"), 0)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    means = counts @ differences / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(differences.mean()), float(low), float(high), n)
