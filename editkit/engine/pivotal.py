"""What null-text and negative-prompt inversion share: pivots, and an unconditional branch that leads back along them.

Both make *guided* sampling reconstruct. So the denoiser that they are given is `Guided(denoiser, ClassifierFree(...))`: the
pivots are those of the denoiser alone under the source condition, and the way back has that guidance with another
unconditional branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from editkit.engine.denoiser import Denoiser
from editkit.engine.guidance import ClassifierFree, Guided
from editkit.engine.trajectory import Trajectory
from editkit.errors import UsageError
from editkit.types import Condition, Levels


def unguided(name: str, denoiser: Denoiser, cond: Condition | None) -> tuple[Denoiser, ClassifierFree, Condition]:
    """Return the denoiser inside, its guidance and the source condition.

    Raises:
        UsageError: no classifier-free guidance around the denoiser, or no text on either of its branches.
    """
    if not isinstance(denoiser, Guided) or not isinstance(denoiser.guidance, ClassifierFree):
        raise UsageError(f"{name} inversion is for guided sampling: pass Guided(denoiser, ClassifierFree(scale, uncond))")
    uncond = denoiser.guidance.uncond
    if cond is None or cond.tokens is None or not isinstance(uncond, Condition) or uncond.tokens is None:
        raise UsageError(f"{name} inversion needs a model that reads text: use ddim, fixed-point or edict for this one")
    return denoiser.denoiser, denoiser.guidance, cond


def settings_of(guidance: ClassifierFree) -> dict[str, Any]:
    """Return what a trajectory has to remember of the guidance, as JSON values."""
    interval = None if guidance.interval is None else list(guidance.interval)
    return {"guidance": {"scale": guidance.scale, "interval": interval, "rescale": guidance.rescale}}


def way_back(trajectory: Trajectory) -> dict[str, Any]:
    """Return the guidance of `sample` that walks a trajectory back; nest it to add to it."""
    uncond = at_times(trajectory.levels, trajectory.conds)
    return {"guidance": ClassifierFree(uncond=uncond, **trajectory.settings["guidance"])}


def at_times(levels: Levels, conds: Mapping[int, Condition]) -> Callable[[float], Condition]:
    """Return a function from a level's time to the condition that was given last on the way down to it."""
    given = {levels.times[i]: conds[min(k for k in conds if k >= i)] for i in range(1, max(conds) + 1)}
    return given.__getitem__
