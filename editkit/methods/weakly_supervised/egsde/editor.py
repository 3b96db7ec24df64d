"""Translation by energy-guided sampling from the noised source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.guidance import Clip, Guidance
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import Noise, sample
from editkit.engine.steps import ddpm
from editkit.methods.weakly_supervised.egsde.energies import Features, TwoEnergies
from editkit.training.editor import Editor, draws_of, grouped, images_of, walked_levels
from editkit.types import EditRequest, EditResult, Levels


class EGSDEEditor(Editor):
    """Noises images and walks back along the reverse SDE of the target domain, steered by two energies.

    A request's strength is the share of the noise scale that is walked: little keeps more of the source, much looks more like
    the target. Its seed and sample number give variants.

    Args:
        backbone: a diffusion model of the target domain alone.
        features: the classifier's features, (x, t) -> (B, C, h, w).
        steps: network queries on the way back.
        strength: share of the noise scale, above 0, at most 1.
        realism, faithfulness, factor: see `TwoEnergies`.
        repeats: how often the walk is repeated, each from the last result; the energies keep to the source itself.
        shared_noise: the noised source has the noise of the start at all levels, as in the released code; False draws its own
            at each level, as in the paper's text.
        clip: keep the model's estimates of x0 in range; the released code does not.

    Raises:
        UsageError: a strength out of range.
    """

    name = "egsde"
    needs = ("image",)

    def __init__(
        self,
        backbone: Backbone,
        features: Features,
        *,
        steps: int,
        strength: float,
        realism: float,
        faithfulness: float,
        factor: int,
        repeats: int = 1,
        shared_noise: bool = True,
        clip: bool = False,
    ) -> None:
        self.backbone, self.features, self.steps, self.strength = backbone, features, steps, strength
        self.weights = {"realism": realism, "faithfulness": faithfulness, "factor": factor}
        self.repeats, self.shared_noise, self.clip = repeats, shared_noise, clip
        self.levels(steps, strength)

    def levels(self, steps: int, strength: float) -> Levels:
        """Return `steps` levels from time 0 to the share `strength` of the noise scale.

        Raises:
            UsageError: a strength out of range, or more steps than there are times.
        """
        return walked_levels(self.backbone.schedule, steps, strength, self.name)

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Any = None) -> EditResult:
        """Return the translated images; requests of the same steps and strength are one batch."""
        sources = images_of(requests).to(self.backbone.device)
        images, calls = torch.empty_like(sources), [0.0] * len(requests)
        settings = [(r.steps or self.steps, self.strength if r.strength is None else r.strength) for r in requests]
        for (steps, strength), rows in grouped(settings):
            levels = self.levels(steps, strength)
            images[rows] = self._translated(sources[rows], [requests[row] for row in rows], levels)
            for row in rows:
                calls[row] = float(self.repeats * (len(levels) - 1))
        return EditResult(images.clamp(-1, 1), scores={"network_calls": calls})

    def _translated(self, sources: Tensor, requests: Sequence[EditRequest], levels: Levels) -> Tensor:
        y, top = sources, len(levels) - 1
        for k in range(self.repeats):
            start = self._noise(requests, sources, f"egsde/start/{k}")
            steps = self._level_noise(requests, sources, f"egsde/step/{k}")
            own = self._shared(start) if self.shared_noise else self._unshared(top, start, requests, sources, k)
            guidance: Guidance = TwoEnergies(sources, own, levels, self.features, **self.weights)
            guidance = Clip(inner=guidance) if self.clip else guidance
            y = levels.signal(top) * y + levels.noise(top) * start
            y = sample(self.backbone, y, levels, step=ddpm, guidance=guidance, noise=steps)
        return y

    def _shared(self, start: Tensor) -> Noise:
        return lambda i: start

    def _unshared(self, top: int, start: Tensor, requests: Sequence[EditRequest], like: Tensor, k: int) -> Noise:
        fresh = self._level_noise(requests, like, f"egsde/source/{k}")
        return lambda i: start if i == top else fresh(i)

    def _noise(self, requests: Sequence[EditRequest], like: Tensor, purpose: str) -> Tensor:
        return batch_noise(like.shape[1:], purpose=purpose, **self._keys(requests))

    def _level_noise(self, requests: Sequence[EditRequest], like: Tensor, purpose: str) -> Noise:
        return level_noise(like.shape[1:], purpose=purpose, **self._keys(requests))

    def _keys(self, requests: Sequence[EditRequest]) -> dict[str, Any]:
        return draws_of(requests) | {"device": self.backbone.device}
