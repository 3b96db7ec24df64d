"""The one sampling loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import PLAIN, Guidance, predict
from editkit.engine.steps import Step, ddim
from editkit.errors import UsageError
from editkit.types import Condition, Levels, Prediction

Noise = Callable[[int], Tensor | None]
OnStep = Callable[[int, int, Tensor, Prediction], Tensor | None]
Ask = Callable[[Tensor], Prediction]
Query = Callable[[Ask, Levels, int, int, Tensor], Prediction]


def ask_once(ask: Ask, levels: Levels, i: int, j: int, x: Tensor) -> Prediction:
    """Ask the network about the state itself."""
    return ask(x)


def whole(x: Tensor) -> Tensor:
    """Return the state itself."""
    return x


def sample(
    denoiser: Denoiser,
    x: Tensor,
    levels: Levels,
    cond: Condition | None = None,
    *,
    step: Step = ddim,
    guidance: Guidance = PLAIN,
    start: int | None = None,
    stop: int = 0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
    query: Query = ask_once,
    output: Callable[[Tensor], Tensor] = whole,
) -> Tensor:
    """Walk the levels down from `start` to `stop`, one query and one solver step per level.

    Gradients are the caller's choice: nothing here switches them on or off. The step history belongs to this call.

    Args:
        denoiser: what to sample from.
        x: the state at level `start`, (B, C, H, W), float32 or float64 whatever the network computes in.
        levels: the list that inversion walked too.
        cond: condition of every step.
        step: solver step; bind its own knobs with functools.partial.
        guidance: branches to query and how to combine them.
        start: level index of `x`; None = the last, noisiest one.
        stop: level index to end at; equal to `start` returns x itself.
        noise: level index -> the noise that the step from there adds; None for deterministic steps.
        on_step: (i, j, x_j, prediction) after each step i -> j; a returned tensor replaces x_j.
        query: (ask, levels, i, j, x_i) -> the prediction that the step i -> j is given, where `ask` puts a state at level i
            to the guided network. Coupled methods, whose x holds two states, ask about one of them, or about both in turn.
        output: what of the last state is returned.

    Returns:
        the state at level `stop`, as `output` reads it.

    Raises:
        ValueError: indices outside the levels, or a half-precision state.
        UsageError: an eps-prediction model at a level without signal, where its output says nothing of x0.
    """
    start = len(levels) - 1 if start is None else start
    _check(denoiser, x, levels, start, stop)
    history: deque[tuple[int, Prediction]] = deque(maxlen=4)  # as far back as any multistep solver looks
    for i in range(start, stop, -1):
        j = i - 1
        ask = partial(predict, denoiser, t=levels.times[i], cond=cond, guidance=guidance)
        pred = query(ask, levels, i, j, x)
        x = step(levels, i, j, x, pred, history, noise(i) if noise is not None else None)
        history.append((i, pred))
        if on_step is not None:
            replaced = on_step(i, j, x, pred)
            x = x if replaced is None else replaced
    return output(x)


def _check(denoiser: Denoiser, x: Tensor, levels: Levels, start: int, stop: int) -> None:
    if not 0 <= stop <= start < len(levels):
        raise ValueError(f"cannot go from level {start} to {stop} of {len(levels)} levels")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the state is kept in float32 or float64, got {x.dtype}: pass x.float()")
    if start > stop and levels.alpha_bar[start] == 0 and denoiser.parameterization == "eps":
        raise UsageError(
            f"time {levels.times[start]:g} holds no signal (alpha_bar 0) and an eps-prediction model says nothing of the image "
            "there: use a v-prediction model, or levels with a lower start"
        )
