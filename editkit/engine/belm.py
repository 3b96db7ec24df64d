"""O-BELM: a two-step linear multistep scheme that runs backwards by the same formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.ode import implicit_move
from editkit.engine.pair import dtype_name, first_as, halves, join
from editkit.engine.sample import Ask, Noise
from editkit.engine.steps import History
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.types import Condition, Levels, Prediction


@dataclass(frozen=True)
class OBELM:
    """Bidirectional explicit linear multistep sampling, the optimal one (O-BELM, arXiv 2410.07273, section 4.2).

    One query a level, and the way back ends at the floor of float64 for any network, guidance and condition that are the
    same both ways. A state is the pair (x_i, x_{i+1}), (B, 2C, H, W); so sampling starts at the last level but one with
    x_N beside it, which spares its first query. x_1 comes from x_0 by one naive DDIM move.

    Attributes:
        pivots: keep the states of all levels, not only the last.
    """

    name: ClassVar[str] = "o-belm"
    pivots: bool = False

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W), at the entry level, up to the noisiest level.

        Raises:
            ValueError: two levels that are the same, or one without signal.
        """
        entry, last = levels.entry, len(levels) - 1
        x = x0.double()
        above = implicit_move(denoiser, x, x, levels, entry, cond)
        states = {entry: join(x, above)}
        for i in range(entry + 1, last):
            x, above = above, _next(levels, i, i + 1, x, above, denoiser(above, levels.times[i], cond))
            if not self.pivots:
                states.clear()
            states[i] = join(x, above)
        settings = settings_of(self) | {"dtype": dtype_name(x0)}
        return Trajectory(levels, last - 1, states, {}, self.name, settings, last - entry)


def way_back(trajectory: Trajectory) -> dict[str, Any]:
    """Return the step, query and output of `sample` that walk an O-BELM trajectory back."""
    return {"step": _step, "query": _ask_first, "output": first_as(trajectory.settings["dtype"])}


def _ask_first(ask: Ask, levels: Levels, i: int, j: int, pair: Tensor) -> Prediction:
    return ask(halves(pair)[0])


def _step(levels: Levels, i: int, j: int, pair: Tensor, pred: Prediction, history: History, noise: Tensor | None) -> Tensor:
    x, above = halves(pair)
    return join(_next(levels, i, j, above, x, pred), x)


def _next(levels: Levels, i: int, j: int, before: Tensor, x: Tensor, pred: Prediction) -> Tensor:
    """Return the state at level j from those at i and on its other side, up or down alike.

    In z = x / a and h = sb_j - sb_i with sb = s / a: z_j = r^2 z_before + (1 - r^2) z + h (1 + r) eps, where r = h / h_before
    is the ratio of the two intervals, signs left out.
    """
    k = 2 * i - j
    h, h_before = _ratio(levels, j) - _ratio(levels, i), _ratio(levels, i) - _ratio(levels, k)
    if h_before == 0:
        raise ValueError(f"levels {k} and {i} are the same: O-BELM needs levels that differ")
    r = h / h_before
    a = levels.signal(j)
    kept = r * r * (a / levels.signal(k)) * before + (1 - r * r) * (a / levels.signal(i)) * x
    return kept + h * (1 + r) * a * pred.eps


def _ratio(levels: Levels, i: int) -> float:
    if levels.alpha_bar[i] == 0:
        raise ValueError(f"level {i} has alpha_bar 0, which O-BELM cannot reach: start from an earlier time")
    return levels.noise(i) / levels.signal(i)
