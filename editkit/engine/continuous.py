"""The schedule of models with a continuous time, and the grid that v-diffusion walks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from editkit.engine.schedule import Schedule
from editkit.types import Levels

UNITS = 1000  # of our times in one of the network's own
DDPM_CROSSOVER, COSINE_CROSSOVER = 0.48536712, 0.80074257  # where the two curves meet, in the time of each


class ContinuousCosine(Schedule):
    """a = cos(pi u / 2), s = sin(pi u / 2) for all u in [0, 1] (v-diffusion; arXiv 2202.00512, section 4).

    Times count 1000 u, as elsewhere, so that what is said of times means the same with every model. Time 0 is a clean image,
    and a network may be asked about it.
    """

    def __init__(self) -> None:
        super().__init__((torch.arange(UNITS, dtype=torch.float64) / UNITS * math.pi / 2).cos() ** 2)

    def alpha_bar(self, t: float | Tensor) -> Tensor:
        """Return cos(pi u / 2)^2 in float64, exact at all times in [-1, 999]; -1 is clean too."""
        self.check_time(t)
        return (torch.as_tensor(t, dtype=torch.float64).clamp(min=0) / UNITS * math.pi / 2).cos() ** 2

    def spliced(self, n: int) -> Levels:
        """Return n + 1 levels from time 0 to 995.71: cosine at first, then as DDPM's noise grows (v-diffusion).

        Every move up is queried at the level that it leaves, time 0 among them: n queries each way.
        """
        grown = (k / n * (1 + COSINE_CROSSOVER - DDPM_CROSSOVER) for k in range(n + 1))
        times = [u if u < COSINE_CROSSOVER else ddpm_time(u + DDPM_CROSSOVER - COSINE_CROSSOVER) for u in grown]
        return self.levels_at([UNITS * u for u in times], clean="ab0")


def ddpm_time(share: float) -> float:
    """Return u in [0, 1] where the noise is that of DDPM at a share of its training times (arXiv 2107.00630, appendix)."""
    return 2 / math.pi * math.atan(math.sqrt(math.expm1(1e-4 + 10 * share**2)))
