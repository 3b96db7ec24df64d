"""The solvers by name, and which levels each walks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from editkit.engine.multistep import dpmpp_2m, plms, unipc, warm_up
from editkit.engine.sample import Noise
from editkit.engine.schedule import Schedule
from editkit.engine.steps import Step, ddim, ddpm
from editkit.errors import UsageError, suggestion
from editkit.types import Levels

__all__ = ["SOLVERS", "Solver", "solver_named"]

# The times that Stable Diffusion's own folders ask for.
_LEADING: dict[str, Any] = {"spacing": "leading", "offset": 1}


@dataclass(frozen=True)
class Solver:
    """A solver step, and how it starts.

    Attributes:
        step: the step, for `sample(step=...)`.
        warm_up: (levels, start) -> levels with more queries at the start, or None.
        grid: arguments of `Schedule.levels` that it takes with latent models.
        linear_in: how that grid's schedule goes on between whole times, see `Schedule`.
        stochastic: whether its step adds noise.
    """

    step: Step
    warm_up: Callable[[Levels, int], Levels] | None = None
    grid: Mapping[str, Any] = field(default_factory=lambda: _LEADING | {"clean": "ab0"})
    linear_in: str = "alpha_bar"
    stochastic: bool = False

    def levels(self, schedule: Schedule, steps: int, *, trailing: bool = False) -> Levels:
        """Return the levels that diffusers walks with this solver and a Stable Diffusion checkpoint.

        Args:
            schedule: of the checkpoint.
            steps: network queries.
            trailing: whether its times end at pure noise, as those of models with zero terminal SNR must.

        Raises:
            UsageError: a schedule that ends without signal, for a solver that interpolates sigma; too many steps.
        """
        if self.linear_in == "sigma" and schedule.table[-1] == 0:
            raise UsageError(
                "sigma is infinite at this model's last time, which holds no signal: choose another solver, such as ddim"
            )
        grid = self.grid
        if trailing and grid["spacing"] == "leading":
            grid = {"spacing": "trailing", "clean": grid.get("clean", "one")}
        return Schedule(schedule.table, linear_in=self.linear_in).levels(steps, **grid)

    def walk(self, levels: Levels, start: int | None = None, noise: Noise | None = None) -> dict[str, Any]:
        """Return the arguments `step`, `levels` and `start` of `sample`, for a state at level `start` (None = the last).

        With an inversion, `replay(trajectory) | solver.walk(trajectory.levels, trajectory.start)`. The argument `noise` is
        among them where the step adds any; for other steps it would be drawn, and copied to the device, in vain.
        """
        start = len(levels) - 1 if start is None else start
        walked = levels if self.warm_up is None else self.warm_up(levels, start)
        walk = {"step": self.step, "levels": walked, "start": start + len(walked) - len(levels)}
        return walk | {"noise": noise} if self.stochastic and noise is not None else walk


# Euler's rule in x / a is DDIM, and its ancestral form DDIM with eta 1 (k-diffusion's sigma is s / a): what is left of
# their own are the times that they are known for, Schedule.levels(spacing="continuous").
SOLVERS: Mapping[str, Solver] = {
    "ddim": Solver(ddim),
    "ddim-eta1": Solver(partial(ddim, eta=1.0), stochastic=True),
    "ddpm": Solver(ddpm, stochastic=True),
    "euler": Solver(ddim, grid={"spacing": "continuous"}, linear_in="sigma"),
    "euler-ancestral": Solver(partial(ddim, eta=1.0), grid={"spacing": "continuous"}, linear_in="sigma", stochastic=True),
    "plms": Solver(plms, warm_up),
    "dpmpp-2m": Solver(dpmpp_2m, grid=_LEADING | {"skip": 1}),
    "unipc": Solver(unipc, grid=_LEADING | {"skip": 1}),
}


def solver_named(name: str) -> Solver:
    """Return a solver of the table.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in SOLVERS:
        raise UsageError(f"there is no solver {name!r}.{suggestion(name, SOLVERS)} Choose from {', '.join(SOLVERS)}")
    return SOLVERS[name]
