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


# What a scheduler config says of the noise, and what it says for diffusers to sample as our solver of that name does.
_NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
_NOISE += ("rescale_betas_zero_snr",)
_LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
_SCHEDULERS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"_class_name": "DDIMScheduler", **_LEADING, "set_alpha_to_one": False, "clip_sample": False},
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"},
    "euler-ancestral": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "linspace"},
    "plms": {"_class_name": "PNDMScheduler", **_LEADING, "set_alpha_to_one": False, "skip_prk_steps": True},
    "dpmpp-2m": {"_class_name": "DPMSolverMultistepScheduler", **_LEADING},
    "unipc": {"_class_name": "UniPCMultistepScheduler", **_LEADING},
}


def for_solver(config: Mapping[str, Any], solver: str) -> dict[str, Any]:
    """Return a scheduler config of the same noise for diffusers' scheduler that is a solver's; as it is if none is."""
    if solver not in _SCHEDULERS:
        return dict(config)
    made = {key: config[key] for key in _NOISE if key in config} | dict(_SCHEDULERS[solver])
    ends_at_noise = config.get("timestep_spacing") == "trailing" and made["timestep_spacing"] == "leading"
    return made | ({"timestep_spacing": "trailing"} if ends_at_noise else {})


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
