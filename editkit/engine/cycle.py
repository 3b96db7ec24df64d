"""CycleDiffusion: noise maps along a path whose neighbouring states share their noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from editkit.engine.noised import EditFriendly, drawn, noised
from editkit.engine.sample import Noise
from editkit.engine.steps import ddim
from editkit.types import Levels, Prediction


@dataclass(frozen=True)
class CycleDiffusion(EditFriendly):
    """The DPM-encoder (CycleDiffusion, arXiv 2210.05559, algorithm 1); its settings are those of `EditFriendly`.

    x_N is noised from x0, and every lower state drawn from the posterior q(x_{i-1} | x_i, x0) with eta, so that the noise
    maps stay close to standard normal ones. Independent noises per level would be `EditFriendly`.
    """

    name: ClassVar[str] = "cycle-diffusion"
    eta: float = 0.1

    def _noisy_states(self, x0: Tensor, levels: Levels, start: int, noise: Noise | None) -> dict[int, Tensor]:
        if start == levels.entry:
            return {}
        states = {start: noised(x0, levels, start, noise)}
        for i in range(start, levels.entry + 1, -1):
            truth = Prediction(x0, (states[i] - levels.signal(i) * x0) / levels.noise(i))
            states[i - 1] = ddim(levels, i, i - 1, states[i], truth, (), drawn(noise, i - 1), eta=self.eta)
        return states
