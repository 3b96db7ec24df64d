"""Multistep solver steps: DDIM plus what earlier predictions say of how the prediction bends on the way.

Each is a DDIM step and differences of predictions, so that x0 and eps that guidance moved, or that come from different
passes, are taken as DDIM takes them; on a step's first call in a loop, without history, it is DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.engine.steps import History, check_down, ddim, ddim_mean, eps_weight
from editkit.errors import UsageError
from editkit.types import Levels, Prediction

_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(levels: Levels, i: int, j: int, x: Tensor, pred: Prediction, history: History, noise: Tensor | None) -> Tensor:
    """DPM-Solver++ 2M, the midpoint form (arXiv 2211.01095, algorithm 2), deterministic.

    Order 1, which equals DDIM, at the first step, and at the last one if the clean end has alpha_bar 1 or there are
    fewer than 15 steps; order 2 in between.
    """
    if i == j:
        return x
    first_order = ddim(levels, i, j, x, pred, history, None)
    last = j == 0 and (levels.alpha_bar[0] == 1 or len(levels) - 1 < 15)
    return first_order if not history or last else first_order + _bend(levels, i, j, pred, history)


def unipc(levels: Levels, i: int, j: int, x: Tensor, pred: Prediction, history: History, noise: Tensor | None) -> Tensor:
    """UniPC-2 on x0 with B(h) = e^h - 1, "bh2" (arXiv 2302.04867, algorithms 1 and 2), deterministic.

    One query a step: the one at x_i first corrects x_i, then predicts x_j from there. The corrector differs from the
    predictor that led to x_i by predictions alone, so that no earlier state is needed. The predictor of order 2 is that
    of DPM-Solver++ 2M; the first and the last step are of order 1, and x_0 is not corrected.

    Raises:
        ValueError: a step up.
    """
    if i == j:
        return x
    check_down("unipc", i, j)
    landed = ddim(levels, i, j, x, pred, history, None)
    if not history:
        return landed
    landed = landed + levels.noise(j) / levels.noise(i) * _correction(levels, i, pred, history)
    return landed if j == 0 else landed + _bend(levels, i, j, pred, history)


def plms(levels: Levels, i: int, j: int, x: Tensor, pred: Prediction, history: History, noise: Tensor | None) -> Tensor:
    """Pseudo linear multistep (arXiv 2202.09778, eq. 9 and 12): DDIM along the Adams-Bashforth mean of up to four eps.

    On levels from `warm_up` the second step, between the two copies of one level, turns the first into a Heun step, as
    Stable Diffusion's own sampler does; the extra query is not part of the mean. On plain levels the first step is DDIM.
    (diffusers takes the mean of the network's outputs: for v-models, of v.)

    Raises:
        UsageError: a level without signal (alpha_bar 0), from which eps does not lead on.
        ValueError: a step up.
    """
    if i == j:
        return x
    check_down("plms", i, j)
    if levels.alpha_bar[i] == 0:
        raise UsageError("plms moves along eps, which says nothing at alpha_bar 0: use ddim, dpmpp-2m or unipc with this model")
    if history and levels.times[i] == levels.times[j]:
        before, earlier = history[-1]
        return x + 0.5 * eps_weight(levels, before, j) * (pred.eps - earlier.eps)
    known = [past for k, past in reversed(history) if levels.times[k] != levels.times[k - 1]]
    return adams_bashforth(levels, i, j, pred, known)


def adams_bashforth(levels: Levels, i: int, j: int, pred: Prediction, earlier: Sequence[Prediction]) -> Tensor:
    """Move from level i to j, up or down, by DDIM along the Adams-Bashforth mean of up to four eps.

    Args:
        pred: at level i.
        earlier: those before it on the way, newest first; without any the move is DDIM.
    """
    known = [pred.eps, *(past.eps for past in earlier)][:4]
    weighted = (weight * eps for weight, eps in zip(_ADAMS_BASHFORTH[len(known) - 1], known, strict=True))
    mean = sum(weighted, torch.zeros_like(pred.eps))
    return ddim_mean(levels, j, pred) + eps_weight(levels, i, j) * (mean - pred.eps)


def warm_up(levels: Levels, start: int) -> Levels:
    """Return the levels with the one below `start` twice: what was at `start` is now one higher.

    A start right above a clean end, which is never queried, has nothing to warm up: the levels are returned as they are.
    """
    below = start - 1
    if start == 0 or levels.times[below] < 0:
        return levels
    alpha_bar, times = (values[:start] + values[below:] for values in (levels.alpha_bar, levels.times))
    return Levels(alpha_bar, times, levels.entry)


def _bend(levels: Levels, i: int, j: int, pred: Prediction, history: History) -> Tensor:
    """Return what the change of x0 since the last query adds to an order 1 step i -> j."""
    before, earlier = history[-1]
    h, h_before = _log_snr_step(levels, i, j), _log_snr_step(levels, before, i)
    return -0.5 * levels.signal(j) * math.expm1(-h) * h / h_before * (pred.x0 - earlier.x0)


def _correction(levels: Levels, i: int, pred: Prediction, history: History) -> Tensor:
    """Return UniC's state at level i less UniP's, of the step that led there."""
    before, earlier = history[-1]
    h = _log_snr_step(levels, before, i)
    change, weight = pred.x0 - earlier.x0, -levels.signal(i) * math.expm1(-h)
    if len(history) == 1:
        return 0.5 * weight * change
    first, earliest = history[-2]
    ratio = -_log_snr_step(levels, first, before) / h
    now = (-1 / h) - 1 / math.expm1(-h)  # (e^-h - 1) / -h - 1, over B = e^-h - 1
    later = 2 * (now / -h - 0.5 / math.expm1(-h))
    share = (later - now) / (ratio - 1)
    return weight * ((share - 0.5) / ratio * (earliest.x0 - earlier.x0) + (now - share) * change)


def _log_snr_step(levels: Levels, i: int, j: int) -> float:
    """Return h, the change of log(a / s) from level i to j."""
    return _half_log_snr(levels.alpha_bar[j]) - _half_log_snr(levels.alpha_bar[i])


def _half_log_snr(alpha_bar: float) -> float:
    if alpha_bar in (0.0, 1.0):
        return -math.inf if alpha_bar == 0 else math.inf
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))
