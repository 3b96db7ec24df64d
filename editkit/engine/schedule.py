"""Noise schedules in float64, and the lists of levels that inversion and sampling walk.

Notation: x_t = a x0 + s eps with a = sqrt(alpha_bar), s = sqrt(1 - alpha_bar); v = a eps - s x0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.errors import UsageError, suggestion
from editkit.types import Levels, Prediction

SPACINGS = ("official", "leading", "trailing", "linspace", "continuous")


class Schedule:
    """A training noise schedule: alpha_bar of the times 0..T-1, float64 and falling; time -1 is a clean image.

    Args:
        table: alpha_bar of each training time, shape (T,).
        linear_in: what is interpolated linearly between whole times: "alpha_bar", or "sigma" = s / a as diffusers'
            Euler solvers do, whose times need not be whole.

    Raises:
        ValueError: a table that is not one-dimensional, leaves [0, 1] or rises; another `linear_in`; "sigma" with a
            table that reaches 0, where sigma is infinite.
    """

    def __init__(self, table: Tensor, *, linear_in: str = "alpha_bar") -> None:
        table = torch.as_tensor(table, dtype=torch.float64).detach().cpu()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"alpha_bar must be a list of two values or more, got shape {tuple(table.shape)}")
        if not (table.min() >= 0 and table.max() <= 1 and (table.diff() <= 0).all()):
            raise ValueError("alpha_bar must fall from the clean end to the noisy end within [0, 1]")
        if linear_in not in ("alpha_bar", "sigma"):
            raise ValueError(f"unknown interpolation {linear_in!r}: choose from alpha_bar, sigma")
        if linear_in == "sigma" and table[-1] == 0:
            raise ValueError("sigma is infinite where alpha_bar is 0: interpolate a table without signal at its end in alpha_bar")
        self.table = table
        self.linear_in = linear_in
        self._padded: dict[torch.device, Tensor] = {}

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        """Build from beta of each time, alpha_bar = cumprod(1 - beta)."""
        return cls(torch.cumprod(1.0 - torch.as_tensor(betas, dtype=torch.float64), 0))

    @classmethod
    def linear(cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
        """beta rises linearly (DDPM, arXiv 2006.11239)."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
        """sqrt(beta) rises linearly (latent diffusion, arXiv 2112.10752)."""
        return cls.from_betas(torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, steps: int = 1000, max_beta: float = 0.999) -> Schedule:
        """alpha_bar follows a squared cosine with beta capped (improved DDPM, arXiv 2102.09672, eq. 17)."""
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas((1 - curve[1:] / curve[:-1]).clamp(max=max_beta))

    def zero_terminal_snr(self) -> Schedule:
        """Return this schedule stretched so that the last time holds no signal (arXiv 2305.08891, algorithm 1)."""
        root = self.table.sqrt()
        return Schedule(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)

    def __len__(self) -> int:
        return len(self.table)

    def rounded(self) -> Tensor:
        """Return alpha_bar of each training time in millionths (T,), whole numbers, which are the same on every machine."""
        return (self.table * 1e6).round().long()

    def alpha_bar(self, t: float | Tensor) -> Tensor:
        """Return alpha_bar in float64 for real times in [-1, T-1], in the shape of `t` and on its device.

        Exact at whole times, interpolated in between: by default linearly in alpha_bar, which is finite at both ends.

        Raises:
            ValueError: a number outside [-1, T-1].
        """
        self.check_time(t)
        t = torch.as_tensor(t, dtype=torch.float64)
        table = self._table_on(t.device)
        place = t + 1
        low = place.floor().long()
        below, above = table[low], table[(low + 1).clamp(max=len(self))]
        if self.linear_in == "alpha_bar":
            return below + (place - low) * (above - below)
        below_sigma, above_sigma = (((1 - value) / value).sqrt() for value in (below, above))
        between = 1 / (1 + (below_sigma + (place - low) * (above_sigma - below_sigma)) ** 2)
        return torch.where(place == low, below, between)

    def check_time(self, t: float | Tensor) -> None:
        """Raise ValueError for a number outside [-1, T-1]; times in tensors are not looked at."""
        if not isinstance(t, Tensor) and not -1 <= t <= len(self) - 1:
            raise ValueError(f"time {t} is outside this schedule's [-1, {len(self) - 1}]")

    def coefficients(self, t: float | Tensor, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Return (a, s) at `t`: floats for one time, tensors (B, 1, ...) in the dtype of `x` for a time per sample."""
        if isinstance(t, Tensor) and t.ndim:
            alpha_bar = self.alpha_bar(t.to(x.device)).reshape(-1, *[1] * (x.ndim - 1))
            return alpha_bar.sqrt().to(x.dtype), (1 - alpha_bar).sqrt().to(x.dtype)
        alpha_bar_t = float(self.alpha_bar(float(t)))
        return math.sqrt(alpha_bar_t), math.sqrt(1 - alpha_bar_t)

    def add_noise(self, x0: Tensor, t: float | Tensor, noise: Tensor) -> Tensor:
        """Return x_t = a x0 + s noise; `t` is a number or (B,)."""
        a, s = self.coefficients(t, x0)
        return a * x0 + s * noise

    def convert(self, x: Tensor, t: float | Tensor, output: Tensor, kind: str) -> Prediction:
        """Turn a network's output at (x, t) into a Prediction in the dtype of `x`.

        At a level without signal an eps output says nothing of x0, and at a clean level an x0 output says nothing of
        the noise: the missing half is 0 there, never a division by zero. v needs no division anywhere.

        Args:
            x: (B, C, H, W).
            t: a number or (B,).
            output: what the network returned, like `x`.
            kind: "eps", "v" or "x0".

        Raises:
            ValueError: another kind.
        """
        output = output.to(x.dtype)
        a, s = self.coefficients(t, x)
        if kind == "v":
            return Prediction(x0=a * x - s * output, eps=a * output + s * x)
        if kind == "eps":
            return Prediction(x0=divide(x - s * output, a), eps=output)
        if kind == "x0":
            return Prediction(x0=output, eps=divide(x - a * output, s))
        raise ValueError(f"unknown parameterization {kind!r}: choose from eps, v, x0")

    def output(self, pred: Prediction, t: float | Tensor, kind: str) -> Tensor:
        """Return what a network puts out that predicts this: the way back of `convert`.

        Of the true x0 and noise it is the training target at time t.

        Args:
            pred: its x0 and eps are used.
            t: a number or (B,).
            kind: "eps", "v" or "x0".

        Raises:
            ValueError: another kind.
        """
        if kind == "v":
            a, s = self.coefficients(t, pred.eps)
            return a * pred.eps - s * pred.x0
        if kind in ("eps", "x0"):
            return pred.eps if kind == "eps" else pred.x0
        raise ValueError(f"unknown parameterization {kind!r}: choose from eps, v, x0")

    def levels(
        self,
        n: int,
        *,
        start: int | None = None,
        spacing: str = "official",
        offset: int = 0,
        clean: str = "one",
        skip: int = 0,
    ) -> Levels:
        """Return the levels of `n` network queries up to time `start`, plus the clean end at index 0.

        Args:
            n: number of queried times.
            start: noisiest time that may be queried; None = T-1.
            spacing: "official" = int(start k / (n-1) + 1e-6) for k = 0..n-1, where inversion places an image at the
                first queried level (entry 1: n-1 calls up, n calls down), as the pixel methods' own code does;
                "leading" = k ((start+1) // n) + offset; "trailing" = round(start+1 - k (start+1) / n) - 1;
                "linspace" = round(k start / (n-1)); "continuous" is that without rounding (diffusers' Euler solvers).
                All but "official" place an image at the clean end (n calls each way).
            offset: added to the times of "leading" (Stable Diffusion has 1).
            clean: alpha_bar of the clean end, "one" = 1 or "ab0" = that of time 0 (set_alpha_to_one=False). Where time
                0 is queried too, "ab0" would make the last move an identity that costs a call: it is left out.
            skip: make a grid of n + skip times and leave out the `skip` cleanest; diffusers' DPM-Solver++ and UniPC have
                1 with "leading" and "linspace".

        Raises:
            UsageError: an unknown spacing or clean end, or more queries than there are times.
        """
        start = len(self) - 1 if start is None else start
        if not 0 < start < len(self):
            raise UsageError(f"start time {start} is outside this schedule: choose from 1 to {len(self) - 1}")
        if spacing not in SPACINGS:
            raise UsageError(f"unknown spacing {spacing!r}.{suggestion(spacing, SPACINGS)} Choose from {', '.join(SPACINGS)}")
        fewest, most = 2 if spacing == "official" else 1, start + 1 - skip
        if not fewest <= n <= most:
            raise UsageError(f"{n} steps do not fit {spacing} spacing over the times 0 to {start}: use {fewest} to {most}")
        times = _spaced(n + skip, start, spacing, offset)[skip:]
        if times[-1] >= len(self):
            raise UsageError(f"offset {offset} with {n} steps leads to time {times[-1]}, beyond the last one, {len(self) - 1}")
        return self.levels_at(times, clean=clean, entry=1 if spacing == "official" else 0)

    def levels_at(self, times: Sequence[float], *, clean: str = "one", entry: int = 0) -> Levels:
        """Return the levels of the given rising times, plus the clean end at index 0 (see `levels`).

        Raises:
            UsageError: times that do not rise or leave the schedule, or an unknown clean end.
        """
        if not 0 <= times[0] <= times[-1] <= len(self) - 1:
            raise UsageError(f"times must lie between 0 and {len(self) - 1}, got {times[0]} to {times[-1]}")
        if any(b <= a for a, b in itertools.pairwise(times)):
            raise UsageError(f"times must rise from the clean end to the noisy end, got {list(times)}")
        if clean not in ("one", "ab0"):
            raise UsageError(f"unknown clean end {clean!r}: choose from one, ab0")
        queried = self.alpha_bar(torch.tensor(times, dtype=torch.float64)).tolist()
        end = 1.0 if clean == "one" else float(self.table[0])
        if clean == "ab0" and times[0] == 0:
            return Levels(tuple(queried), tuple(map(float, times)))
        return Levels((end, *queried), (-1.0, *map(float, times)), entry)

    def _table_on(self, device: torch.device) -> Tensor:
        if device not in self._padded:
            self._padded[device] = torch.cat([torch.ones(1, dtype=torch.float64), self.table]).to(device)
        return self._padded[device]


def divide(numerator: Tensor, by: float | Tensor) -> Tensor:
    """Return numerator / by, and 0 (with zero gradient) where `by` is 0."""
    if isinstance(by, Tensor):
        return torch.where(by > 0, numerator / torch.where(by > 0, by, 1.0), 0.0)
    return numerator / by if by > 0 else torch.zeros_like(numerator)


def _spaced(n: int, start: int, spacing: str, offset: int) -> Sequence[float]:
    """Return the times of a grid; halves are rounded as by numpy's linspace and arange, hence as in diffusers."""
    if spacing == "leading":
        return [k * ((start + 1) // n) + offset for k in range(n)]
    if spacing == "trailing":
        top = float(start + 1)
        stride = (top - top / n) - top
        return [round(top + k * stride) - 1 for k in reversed(range(n))]
    if n == 1:
        return [start]
    if spacing == "linspace":
        return [round(k * (start / (n - 1))) for k in range(n)]
    if spacing == "continuous":
        return [k * start / (n - 1) for k in range(n)]
    return [int(start * k / (n - 1) + 1e-6) for k in range(n)]
