"""The inverters by name, and the way back.

Whatever the inverter, the way back is the one loop: `sample(denoiser, cond=..., **replay(trajectory))`.
To invert under guidance, pass `Guided(denoiser, guidance)` as the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from editkit.engine import belm, direct, edict, pivotal
from editkit.engine.belm import OBELM
from editkit.engine.cycle import CycleDiffusion
from editkit.engine.denoiser import Denoiser
from editkit.engine.direct import Direct
from editkit.engine.edict import EDICT
from editkit.engine.multistep import plms
from editkit.engine.negative_prompt import NegativePrompt
from editkit.engine.noised import EditFriendly, SDEdit
from editkit.engine.null_text import NullText
from editkit.engine.ode import DDIM, PLMS, FixedPoint
from editkit.engine.renoise import ReNoise
from editkit.engine.sample import Noise
from editkit.engine.steps import ddim, sigma
from editkit.engine.trajectory import Trajectory
from editkit.types import Condition, Levels, Prediction

__all__ = [
    "DDIM",
    "EDICT",
    "GUIDED",
    "INVERTERS",
    "OBELM",
    "PLMS",
    "CycleDiffusion",
    "Direct",
    "EditFriendly",
    "FixedPoint",
    "Inverter",
    "NegativePrompt",
    "NullText",
    "ReNoise",
    "SDEdit",
    "replay",
]


class Inverter(Protocol):
    """A frozen dataclass of settings with `invert`; its fields are part of every cache key."""

    @property
    def name(self) -> str: ...

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Return the trajectory of x0 (B, C, H, W); `noise` is a level index -> Tensor, for stochastic inverters."""
        ...


_ALL: tuple[type[Inverter], ...] = (
    DDIM,
    PLMS,
    FixedPoint,
    ReNoise,
    EDICT,
    OBELM,
    EditFriendly,
    CycleDiffusion,
    SDEdit,
    Direct,
    NullText,
    NegativePrompt,
)
INVERTERS: dict[str, Callable[..., Inverter]] = {str(each.name): each for each in _ALL}
GUIDED = frozenset({NullText.name, NegativePrompt.name})  # these need Guided(denoiser, ClassifierFree(...)) and a condition

_WAYS_BACK: dict[str, Callable[[Trajectory], dict[str, Any]]] = {
    EDICT.name: edict.way_back,
    OBELM.name: belm.way_back,
    PLMS.name: lambda trajectory: {"step": plms},
    Direct.name: direct.way_back,
    NullText.name: pivotal.way_back,
    NegativePrompt.name: pivotal.way_back,
}


def replay(trajectory: Trajectory) -> dict[str, Any]:
    """Return the arguments of `sample` that walk a trajectory back.

    x, levels and start; step of a multistep inverter; step and noise of stochastic ones; step, query and output of coupled
    ones; guidance of those that invert guided sampling; on_step of those that look after a step.
    """
    back: dict[str, Any] = {"x": trajectory.x, "levels": trajectory.levels, "start": trajectory.start}
    if trajectory.noises:
        return back | _noisy_way_back(trajectory)
    own = _WAYS_BACK.get(trajectory.inverter)
    return back if own is None else back | own(trajectory)


def _noisy_way_back(trajectory: Trajectory) -> dict[str, Any]:
    levels, noises, eta = trajectory.levels, trajectory.noises, trajectory.settings["eta"]

    def add_remainder(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
        return x + noises[i] if i in noises and sigma(levels, i, j, eta) == 0 else None

    return {"step": partial(ddim, eta=eta), "noise": noises.get, "on_step": add_remainder}
