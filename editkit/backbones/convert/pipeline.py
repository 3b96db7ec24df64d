"""A diffusers pipeline's folder: one folder for each part, and model_index.json, which names them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler
from torch import nn

from editkit.backbones.convert.layout import Source
from editkit.errors import UserError

BETAS = (0.00085, 0.012)  # their square roots are spaced evenly
STEPS = 1000
BUFFERS = re.compile(r"betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|logvar")
_ALL = {"num_train_timesteps": STEPS, "beta_start": BETAS[0], "beta_end": BETAS[1], "beta_schedule": "scaled_linear"}
_OFFSET = {"steps_offset": 1, "set_alpha_to_one": False}
SAMPLERS: dict[str, Callable[..., Any]] = {  # by what the authors sample with
    "ddim": lambda **more: DDIMScheduler(**_ALL, **_OFFSET, clip_sample=False, **more),
    "plms": lambda **more: PNDMScheduler(**_ALL, **_OFFSET, skip_prk_steps=True, **more),
    "euler_a": lambda **more: EulerAncestralDiscreteScheduler(**_ALL, timestep_spacing="linspace", **more),
}


@dataclass(frozen=True)
class Part:
    """A part of a pipeline.

    Attributes:
        library, kind: where its class is, and the name of the class.
        write: fills the part's folder.
        network: the part if it has weights, to count them.
    """

    library: str
    kind: str
    write: Callable[[Path], Any]
    network: nn.Module | None = None


def saved(part: Any) -> Part:
    """Return a part that writes itself: a model or scheduler of diffusers, a tokenizer of transformers."""
    library = type(part).__module__.partition(".")[0]
    return Part(library, type(part).__name__, part.save_pretrained, part if isinstance(part, nn.Module) else None)


def scheduler_of(source: Source, sampler: str, prediction: str) -> Part:
    """Return the scheduler of the schedule that all published models of LDM's layout share.

    Args:
        source: the whole checkpoint, whose `betas` are compared if it holds them.
        sampler: key of `SAMPLERS`.
        prediction: "epsilon" or "v_prediction".

    Raises:
        UserError: other betas.
    """
    seen = source.tensors.get("betas")
    expected = torch.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, STEPS, dtype=torch.float64) ** 2
    if seen is not None and (seen.shape != expected.shape or (seen.double() - expected).abs().max() > 1e-5):
        raise UserError(
            f"{source.name} has other betas than Stable Diffusion (scaled linear, {BETAS[0]} to {BETAS[1]}): not supported"
        )
    return saved(SAMPLERS[sampler](prediction_type=prediction))


def parameters(parts: Mapping[str, Part | None]) -> int:
    """Return how many parameters the parts have in all."""
    networks = [part.network for part in parts.values() if part is not None and part.network is not None]
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def write_pipeline(folder: Path, kind: str, parts: Mapping[str, Part | None]) -> None:
    """Write the folder that `kind`, a pipeline of diffusers, opens.

    Args:
        folder: where it goes.
        kind: name of the pipeline's class.
        parts: by the names of its arguments; None for one that is left out.
    """
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": diffusers.__version__, "requires_safety_checker": False}
    for name, part in parts.items():
        index[name] = [part.library, part.kind] if part else [None, None]
        if part:
            (folder / name).mkdir(parents=True)
            part.write(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
