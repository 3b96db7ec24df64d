"""Solver steps: pure functions that move x from level i to level j of one list of levels.

All take the same leading arguments, so that they are interchangeable: `step(levels, i, j, x, pred, history, noise)`.
`history` holds (level index, Prediction) of earlier queries, newest last, and belongs to the loop. `noise` is standard
normal, like x, or None. Coefficients are Python floats (float64) that meet the tensors once. Step i -> i returns x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from editkit.types import Levels, Prediction

History = Sequence[tuple[int, Prediction]]
Step = Callable[[Levels, int, int, Tensor, Prediction, History, Tensor | None], Tensor]


def move(levels: Levels, i: int, j: int, x: Tensor, eps: Tensor) -> Tensor:
    """Return x moved from level i to level j along a fixed eps, up or down: the exact inverse of its own way back.

    x_j = A x_i + B eps with A = a_j / a_i, B = s_j - A s_i (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0).

    Raises:
        ValueError: level i holds no signal, so that x_i does not determine x_j along eps.
    """
    if i == j:
        return x
    if levels.alpha_bar[i] == 0:
        raise ValueError(f"level {i} has alpha_bar 0: moving along eps is undefined there; use a v- or x0-prediction model")
    return levels.signal(j) / levels.signal(i) * x + eps_weight(levels, i, j) * eps


def eps_weight(levels: Levels, i: int, j: int) -> float:
    """Return B = s_j - a_j / a_i s_i, what a move i -> j along eps adds of it; level i must hold signal."""
    return levels.noise(j) - levels.signal(j) / levels.signal(i) * levels.noise(i)


def sigma(levels: Levels, i: int, j: int, eta: float) -> float:
    """Return the standard deviation of the noise that a DDIM step i -> j adds (arXiv 2010.02502, eq. 16).

    Raises:
        ValueError: eta above 0 on the way up.
    """
    if eta == 0:
        return 0.0
    if j > i:
        raise ValueError(f"a step up, from level {i} to {j}, cannot add noise: eta must be 0, got {eta}")
    low, high = levels.alpha_bar[i], levels.alpha_bar[j]
    if low == high or high == 1:
        return 0.0
    return eta * math.sqrt((1 - high) / (1 - low)) * math.sqrt(1 - low / high)


def ddim_mean(levels: Levels, j: int, pred: Prediction, deviation: float = 0.0) -> Tensor:
    """Return a_j x0 + sqrt(1 - alpha_bar_j - deviation^2) eps, plus the prediction's mean shift."""
    direction = math.sqrt(max(1 - levels.alpha_bar[j] - deviation**2, 0.0))
    return _shifted(levels.signal(j) * pred.x0 + direction * pred.eps, pred)


def ddim(
    levels: Levels, i: int, j: int, x: Tensor, pred: Prediction, history: History, noise: Tensor | None, *, eta: float = 0.0
) -> Tensor:
    """DDIM, up or down; eta 1 is DDPM with the small posterior variance (arXiv 2010.02502, eq. 12).

    Raises:
        ValueError: eta above 0 on the way up, or without noise.
    """
    if i == j:
        return x
    deviation = sigma(levels, i, j, eta)
    mean = ddim_mean(levels, j, pred, deviation)
    return mean + deviation * _given(noise) if deviation else mean


def ddpm(
    levels: Levels,
    i: int,
    j: int,
    x: Tensor,
    pred: Prediction,
    history: History,
    noise: Tensor | None,
    *,
    variance: str = "small",
) -> Tensor:
    """Ancestral sampling on the kept levels, beta' = 1 - alpha_bar_i / alpha_bar_j (arXiv 2006.11239, eq. 7).

    The variance is learned where the prediction has `logvar` (the log variance itself) or `features["variance"]` (a
    network's place between the two fixed ones, -1 = small, 1 = large; arXiv 2102.09672, eq. 15), else `variance`: the
    "small" posterior one or the "large" beta'. The step to level 0 adds no noise.

    Raises:
        ValueError: a step up, or no noise where some is due.
    """
    if i == j:
        return x
    check_down("ddpm", i, j)
    low, high = levels.alpha_bar[i], levels.alpha_bar[j]
    alpha = low / high
    beta = 1 - alpha
    x0_part, x_part = math.sqrt(high) * beta / (1 - low), math.sqrt(alpha) * (1 - high) / (1 - low)
    mean = _shifted(x0_part * pred.x0 + x_part * x, pred)
    deviation = ddpm_deviation(levels, i, j, pred, variance=variance)
    return mean if isinstance(deviation, float) and deviation == 0 else mean + deviation * _given(noise)


def ddpm_deviation(levels: Levels, i: int, j: int, pred: Prediction, *, variance: str = "small") -> float | Tensor:
    """Return the standard deviation of the noise that a `ddpm` step i -> j adds: a number, or like the prediction if learned."""
    low, high = levels.alpha_bar[i], levels.alpha_bar[j]
    beta = 1 - low / high
    if j == 0 or beta == 0:
        return 0.0
    small = beta * (1 - high) / (1 - low)
    if pred.logvar is not None:
        return (0.5 * pred.logvar).exp()
    if "variance" in pred.features:
        share = (pred.features["variance"].to(pred.x0.dtype) + 1) / 2
        return (0.5 * (share * math.log(beta) + (1 - share) * math.log(small))).exp()
    return math.sqrt({"small": small, "large": beta}[variance])


def check_down(name: str, i: int, j: int) -> None:
    """Refuse a step up, for solvers that only go down.

    Raises:
        ValueError: j above i.
    """
    if j > i:
        raise ValueError(f"{name} cannot step up, got a step from level {i} to {j}")


def _shifted(mean: Tensor, pred: Prediction) -> Tensor:
    return mean if pred.mean_shift is None else mean + pred.mean_shift


def _given(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise ValueError("this step adds noise: pass noise=, for example editkit.engine.rng.level_noise(...)")
    return noise
