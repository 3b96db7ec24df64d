"""The solvers by name, and what each asks of the levels that it walks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from editkit.engine.multistep import dpmpp_2m, plms, unipc, warm_up
from editkit.engine.steps import Step, ddim, ddpm
from editkit.errors import UsageError, suggestion
from editkit.types import Levels

__all__ = ["SOLVERS", "Solver", "solver_named"]


@dataclass(frozen=True)
class Solver:
    """A solver step, and how it starts.

    Attributes:
        step: the step, for `sample(step=...)`.
        warm_up: (levels, start) -> levels with more queries at the start, or None.
    """

    step: Step
    warm_up: Callable[[Levels, int], Levels] | None = None

    def walk(self, levels: Levels, start: int | None = None) -> dict[str, Any]:
        """Return the arguments `step`, `levels` and `start` of `sample`, for a state at level `start` (None = the last).

        With an inversion, `replay(trajectory) | solver.walk(trajectory.levels, trajectory.start)`.
        """
        start = len(levels) - 1 if start is None else start
        walked = levels if self.warm_up is None else self.warm_up(levels, start)
        return {"step": self.step, "levels": walked, "start": start + len(walked) - len(levels)}


# Euler's rule in x / a is DDIM, and its ancestral form DDIM with eta 1 (k-diffusion's sigma is s / a): what is left of
# their own are the times that they are known for, Schedule.levels(spacing="continuous").
SOLVERS: Mapping[str, Solver] = {
    "ddim": Solver(ddim),
    "ddim-eta1": Solver(partial(ddim, eta=1.0)),
    "ddpm": Solver(ddpm),
    "euler": Solver(ddim),
    "euler-ancestral": Solver(partial(ddim, eta=1.0)),
    "plms": Solver(plms, warm_up),
    "dpmpp-2m": Solver(dpmpp_2m),
    "unipc": Solver(unipc),
}


def solver_named(name: str) -> Solver:
    """Return a solver of the table.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in SOLVERS:
        raise UsageError(f"there is no solver {name!r}.{suggestion(name, SOLVERS)} Choose from {', '.join(SOLVERS)}")
    return SOLVERS[name]
