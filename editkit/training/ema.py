"""Moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from editkit.training.shards import like

RAMP = 0.05  # the half-life is at most this share of the images seen so far, so that early weights are forgotten


class Ema:
    """Averages, kept in float32.

    Args:
        parameters: {group: {name: parameter}}.
        decay: below 1, the decay per step, warmed up as min(decay, (1 + n) / (10 + n)) at the n-th step; from 1
            upwards a half-life in images (Karras et al., arXiv:2312.02696, with a ramp).
        device: where they are; None = beside the parameters. "cpu" spares a GPU's memory and costs a copy at each step.
    """

    def __init__(self, parameters: Mapping[str, Mapping[str, nn.Parameter]], decay: float, device: str | None = None) -> None:
        self.parameters = parameters
        self.decay = decay
        self.averages = {
            group: {name: p.detach().to(device or p.device, torch.float32, copy=True) for name, p in named.items()}
            for group, named in parameters.items()
        }
        self.updates = dict.fromkeys(parameters, 0)
        self.images = dict.fromkeys(parameters, 0)

    @torch.no_grad()
    def update(self, group: str, *, images: int) -> None:
        """Average the group's weights of the step just taken; `images` = images seen since the start."""
        self.updates[group] += 1
        decay = self._decay(group, images)
        self.images[group] = images
        averages, current = list(self.averages[group].values()), list(self.parameters[group].values())
        torch._foreach_lerp_(averages, [p.detach().to(a) for p, a in zip(current, averages, strict=True)], 1.0 - decay)

    def _decay(self, group: str, images: int) -> float:
        if self.decay < 1:
            n = self.updates[group]
            return min(self.decay, (1 + n) / (10 + n))
        half_life = min(self.decay, max(images, 1) * RAMP)
        return 0.5 ** ((images - self.images[group]) / half_life)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold their averages inside the context, and their own values again after it."""
        pairs = [(p, self.averages[group][name]) for group, named in self.parameters.items() for name, p in named.items()]
        own = [p.detach().to(average.device, copy=True) for p, average in pairs]
        with torch.no_grad():
            for parameter, average in pairs:
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parameter, _), value in zip(pairs, own, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and their counts."""
        return {"averages": self.averages, "updates": self.updates, "images": self.images}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a `state_dict` back."""
        averages: Mapping[str, Mapping[str, Tensor]] = state["averages"]
        for group, named in self.averages.items():
            for name, average in named.items():
                average.copy_(like(averages[group][name], average))
        self.updates, self.images = dict(state["updates"]), dict(state["images"])
