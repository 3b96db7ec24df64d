"""The inverters by name, and the way back.

Whatever the inverter, the way back is the one loop: `sample(denoiser, cond=..., **replay(trajectory))`.
To invert under guidance, pass `Guided(denoiser, guidance)` as the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.noised import EditFriendly, SDEdit
from editkit.engine.ode import DDIM, FixedPoint
from editkit.engine.sample import Noise
from editkit.engine.steps import ddim, sigma
from editkit.engine.trajectory import Trajectory
from editkit.types import Condition, Levels, Prediction

__all__ = ["DDIM", "INVERTERS", "EditFriendly", "FixedPoint", "Inverter", "SDEdit", "replay"]


class Inverter(Protocol):
    """A frozen dataclass of settings with `invert`; its fields are part of every cache key."""

    @property
    def name(self) -> str: ...

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Return the trajectory of x0 (B, C, H, W); `noise` is a level index -> Tensor, for stochastic inverters."""
        ...


INVERTERS: dict[str, Callable[..., Inverter]] = {each.name: each for each in (DDIM, FixedPoint, EditFriendly, SDEdit)}


def replay(trajectory: Trajectory) -> dict[str, Any]:
    """Return the arguments of `sample` that walk a trajectory back: x, levels, start, and step and noise if stochastic."""
    levels, noises = trajectory.levels, trajectory.noises
    back: dict[str, Any] = {"x": trajectory.x, "levels": levels, "start": trajectory.start}
    if not noises:
        return back
    eta = trajectory.settings["eta"]

    def add_remainder(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
        return x + noises[i] if i in noises and sigma(levels, i, j, eta) == 0 else None

    return back | {"step": partial(ddim, eta=eta), "noise": noises.get, "on_step": add_remainder}
