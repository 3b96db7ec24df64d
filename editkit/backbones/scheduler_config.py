"""The noise schedule and the parameterization that a scheduler config of diffusers describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from editkit.engine.schedule import Schedule
from editkit.errors import UserError

FILE = "scheduler_config.json"
_PARAMETERIZATION = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


# What a folder's scheduler config says for diffusers to sample as our solver of that name does.
_SAME = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "leading"}
_SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {**_SAME, "_class_name": "DDIMScheduler"},
    "euler": {**_SAME, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"},
    "euler-ancestral": {**_SAME, "_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "linspace"},
    "plms": {**_SAME, "_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "dpmpp-2m": {**_SAME, "_class_name": "DPMSolverMultistepScheduler"},
    "unipc": {**_SAME, "_class_name": "UniPCMultistepScheduler"},
}


def for_solver(config: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """Return a scheduler config with the scheduler and times of diffusers that are a solver's; as it is for one without any."""
    return {**config, **_SCHEDULERS.get(solver, {})}


def parameterization_of(config: Mapping[str, Any]) -> str:
    """Return "eps", "v" or "x0" from a diffusers scheduler config."""
    kind = config.get("prediction_type", "epsilon")
    if kind not in _PARAMETERIZATION:
        raise UserError(
            f"prediction_type={kind} is not supported: the scheduler config must say one of {', '.join(_PARAMETERIZATION)}"
        )
    return _PARAMETERIZATION[kind]


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Return the noise schedule of a diffusers scheduler config."""
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = Schedule.from_betas(torch.as_tensor(config["trained_betas"], dtype=torch.float64))
    elif name == "linear":
        schedule = Schedule.linear(steps, start, end)
    elif name == "scaled_linear":
        schedule = Schedule.scaled_linear(steps, start, end)
    elif name == "squaredcos_cap_v2":
        schedule = Schedule.cosine(steps)
    else:
        raise UserError(f"beta_schedule={name} is not supported: choose from linear, scaled_linear, squaredcos_cap_v2")
    return schedule.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def grid_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Schedule.levels` that give the times and the clean end of diffusers' DDIMScheduler."""
    spacing = config.get("timestep_spacing", "leading")
    clean = "one" if config.get("set_alpha_to_one", True) else "ab0"
    return {"spacing": spacing, "offset": config.get("steps_offset", 0) if spacing == "leading" else 0, "clean": clean}


def read_scheduler(*folders: Path) -> dict[str, Any]:
    """Return the scheduler config of the first of some folders that has one.

    Raises:
        UserError: none has.
    """
    for folder in folders:
        if (folder / FILE).exists():
            return json.loads((folder / FILE).read_text(encoding="utf-8"))
    raise UserError(
        f"{folders[-1]} has no {FILE}: give its noise schedule, such as "
        "'+backbone.scheduler={beta_schedule: linear, prediction_type: epsilon}'"
    )
