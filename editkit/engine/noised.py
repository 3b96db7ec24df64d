"""Inversion by adding noise: a noised start, and the edit-friendly DDPM noise space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.lanes import evaluate
from editkit.engine.sample import Noise
from editkit.engine.steps import ddim_mean, sigma
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.errors import UsageError
from editkit.types import Condition, Levels


@dataclass(frozen=True)
class SDEdit:
    """A noised start: x_n = a_n x0 + s_n e with n = int(N strength) (arXiv 2108.01073). No network call.

    Attributes:
        strength: share of the levels to redo: 0 returns the image, 1 starts at the noisiest level, which still holds
            a_N x0.

    Raises:
        UsageError: a strength outside [0, 1].
    """

    name: ClassVar[str] = "sdedit"
    strength: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"strength {self.strength} of a noised start is outside 0 to 1")

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Noise x0 (B, C, H, W) to the level of the first executed step, with noise(that level)."""
        start = int((len(levels) - 1) * self.strength + 1e-9)
        x = x0 if start == 0 else noised(x0, levels, start, noise)
        return Trajectory(levels, start, {start: x}, inverter=self.name, settings=settings_of(self))


@dataclass(frozen=True)
class EditFriendly:
    """Edit-friendly DDPM inversion: noise maps that carry the image's structure (arXiv 2304.06140, algorithm 1).

    Every level is noised independently, x_i = a_i x0 + s_i e_i, and z_i is what makes a DDPM step from x_i land on
    x_{i-1}. The same z with another condition edits. Source guidance: invert through `Guided`.

    Attributes:
        skip: levels left out at the noisy end; all of them = the image itself.
        eta: above 0; 1 is DDPM. (Elsewhere than at 1 the official code keeps eta var instead of eta^2 var in the mean.)
        keep_last: keep the noise of the last step, which makes reconstruction exact; False drops it, as the official
            code does, which denoises a little. Where the clean end allows no noise the remainder itself is kept.
        time_batch: levels per network call. 1 corrects the rounding drift after every level; more are faster and exact
            only within rounding.
        pivots: keep the states of all levels.

    Raises:
        UsageError: eta of 0 or less, or a negative skip.
    """

    name: ClassVar[str] = "edit-friendly"
    skip: int = 0
    eta: float = 1.0
    keep_last: bool = True
    time_batch: int = 1
    pivots: bool = False

    def __post_init__(self) -> None:
        if self.eta <= 0 or self.skip < 0 or self.time_batch < 1:
            seen = f"got {self.eta}, {self.skip} and {self.time_batch}"
            raise UsageError(f"edit-friendly inversion needs eta > 0, skip >= 0 and time_batch >= 1, {seen}")

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Find the noise maps of x0 (B, C, H, W), at the entry level, with noise(i) for the state of each level i."""
        entry = levels.entry
        start = max(len(levels) - 1 - self.skip, entry)
        states = {entry: x0} | self._noisy_states(x0, levels, start, noise)
        noises: dict[int, Tensor] = {}
        way = list(range(start, entry, -1))
        for first in range(0, len(way), self.time_batch):
            chunk = way[first : first + self.time_batch]
            preds = evaluate(denoiser, [(states[i], levels.times[i], cond) for i in chunk])
            for i, pred in zip(chunk, preds, strict=True):
                deviation = sigma(levels, i, i - 1, self.eta)
                mean = ddim_mean(levels, i - 1, pred, deviation)
                noises[i] = (states[i - 1] - mean) / (deviation or 1.0)
                if i > entry + 1:
                    states[i - 1] = mean + (deviation or 1.0) * noises[i]
        if not self.keep_last and way:
            noises[entry + 1] = torch.zeros_like(x0)
        calls = -(-len(way) // self.time_batch)
        kept = states if self.pivots else {start: states[start]}
        return Trajectory(levels, start, kept, noises, self.name, settings_of(self), calls)

    def _noisy_states(self, x0: Tensor, levels: Levels, start: int, noise: Noise | None) -> dict[int, Tensor]:
        """Return the states of the levels above the entry up to `start`."""
        return {i: noised(x0, levels, i, noise) for i in range(levels.entry + 1, start + 1)}


def noised(x0: Tensor, levels: Levels, i: int, noise: Noise | None) -> Tensor:
    """Return x0 noised to level i with noise(i).

    Raises:
        ValueError: no noise for this level.
    """
    return levels.signal(i) * x0 + levels.noise(i) * drawn(noise, i)


def drawn(noise: Noise | None, i: int) -> Tensor:
    """Return noise(i).

    Raises:
        ValueError: there is none.
    """
    found = None if noise is None else noise(i)
    if found is None:
        raise ValueError(f"no noise for level {i}: pass noise=, for example editkit.engine.rng.level_noise(...)")
    return found
