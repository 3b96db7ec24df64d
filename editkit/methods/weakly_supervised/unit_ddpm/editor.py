"""Translation by two diffusion models side by side, each of which reads the other's picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.guidance import Clip
from editkit.engine.noised import noised
from editkit.engine.pair import first_as, halves, join
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import Noise, sample
from editkit.engine.steps import ddpm
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.unit_ddpm.networks import NoiseNetwork
from editkit.training.editor import Editor, draws_of, grouped, images_of, walked_levels
from editkit.types import Condition, EditRequest, EditResult, Levels, Prediction


@dataclass(frozen=True)
class SideBySide(Wrapper):
    """The denoiser of a pair, (B, 2C, H, W), the target's picture first; each network reads the other's picture as it is now.

    Attributes:
        denoiser: the target's noise network.
        source: the source's.
        walks: from a time to whether the source's picture walks too; where it does not, its half of the prediction is zero.
    """

    denoiser: Denoiser
    source: Denoiser
    walks: Callable[[float], bool]

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict for the pair at one time t."""
        target, source = halves(x)
        there = self.denoiser(target, t, Condition(concat=source))
        zero = torch.zeros_like(source)
        here = self.source(source, t, Condition(concat=target)) if self.walks(float(t)) else Prediction(zero, zero)
        return Prediction(join(there.x0, here.x0), join(there.eps, here.eps))


class UnitDDPMEditor(Editor):
    """Denoises pure noise by the target's network, beside the source, which is noised anew for every step (section 3.3).

    From the release time on the source is not noised any more: it walks down by its own network beside the translation. A
    request's seed and sample number give variants.

    Args:
        target, source: the noise networks of the two domains.
        steps: of the walk; as many as the schedule has in the paper, fewer are ours.
        release: the release time, of 1 to the schedule's length; 0 and 1 noise the source for all steps.
        strength: share of the noise scale that is walked (ours): below 1 the walk begins at the noised source, not at noise.

    Raises:
        UsageError: a strength or a release time out of range.
    """

    name = "unit-ddpm"
    needs = ("image",)

    def __init__(
        self, target: NoiseNetwork, source: NoiseNetwork, *, steps: int, release: int = 1, strength: float = 1.0
    ) -> None:
        self.backbone, self.source, self.steps, self.release, self.strength = target, source, steps, release, strength
        if not 0 <= release <= len(target.schedule):
            raise UsageError(f"method.release={release} is no time of this model: choose from 0 to {len(target.schedule)}")
        walked_levels(target.schedule, steps, strength, self.name)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Any = None) -> EditResult:
        """Return the translated images; requests of the same steps and strength are one batch."""
        sources = images_of(requests).to(self.backbone.device)
        images, calls = torch.empty_like(sources), [0.0] * len(requests)
        settings = [(r.steps or self.steps, self.strength if r.strength is None else r.strength) for r in requests]
        for (steps, strength), rows in grouped(settings):
            levels = walked_levels(self.backbone.schedule, steps, strength, self.name)
            draws = draws_of([requests[row] for row in rows])
            images[rows] = self._translated(sources[rows], draws, levels, from_noise=strength == 1)
            for row in rows:
                calls[row] = float(len(levels) - 1 + sum(self._walks(levels, t) for t in levels.times[1:]))
        return EditResult(images.clamp(-1, 1), scores={"network_calls": calls})

    def _released(self, t: float) -> bool:
        """Say whether the source is let go at a time; the paper counts times from 1."""
        return t + 1 <= self.release

    def _walks(self, levels: Levels, t: float) -> bool:
        """Say whether the source takes a step from a time: the last one would lead to a picture that nobody reads."""
        return self._released(t) and t > levels.times[1]

    def _translated(self, sources: Tensor, draws: dict[str, Any], levels: Levels, *, from_noise: bool) -> Tensor:
        shape, top = sources.shape[1:], len(levels) - 1

        def fresh(purpose: str) -> Noise:
            return level_noise(shape, purpose=f"unit-ddpm/{purpose}", device=sources.device, **draws)

        renoise, step, own = fresh("source"), fresh("step"), fresh("own")
        start = batch_noise(shape, purpose="unit-ddpm/start", device=sources.device, **draws)
        begun = start if from_noise else levels.signal(top) * sources + levels.noise(top) * start

        def steps_noise(i: int) -> Tensor:
            walks = self._walks(levels, levels.times[i])
            return join(step(i), own(i) if walks else torch.zeros_like(sources))

        def again(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
            if j == 0 or self._released(levels.times[i]):
                return None
            return join(halves(x)[0], noised(sources, levels, j, renoise))

        return sample(
            SideBySide(self.backbone, self.source, lambda t: self._walks(levels, t)),
            join(begun, noised(sources, levels, top, renoise)),
            levels,
            step=ddpm,
            guidance=Clip(),
            noise=steps_noise,
            on_step=again,
            output=first_as("float32"),
        )
