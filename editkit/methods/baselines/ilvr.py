"""ILVR: sample from noise while the low frequencies are taken from a reference (Choi et al., arXiv 2108.02938)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.engine.guidance import PLAIN, Clip
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import OnStep, sample
from editkit.engine.steps import ddpm
from editkit.errors import UsageError
from editkit.networks.low_pass import low_pass
from editkit.training.editor import Editor, by_steps, draws_of, images_of
from editkit.training.method import Artefact, Method
from editkit.types import EditRequest, EditResult, Levels, Prediction


class ILVREditor(Editor):
    """Draws an image anew from noise; after each step its low frequencies become those of the image noised alike.

    Algorithm 1 of the paper, with the low pass of `editkit.networks.low_pass` (the released code resizes with a cubic kernel).

    Args:
        backbone: a diffusion model of pixels, of what is to be drawn.
        steps: network queries, unless a request says otherwise.
        factor: of the low pass: the larger, the freer.
        until: share of the noise scale above which the reference has a say; below it the model is left alone.
        clip: keep the model's estimates of x0 in range.

    Raises:
        UsageError: a share out of range.
    """

    name = "ilvr"

    def __init__(self, backbone: Backbone, *, steps: int, factor: int, until: float, clip: bool) -> None:
        if not 0 <= until <= 1:
            raise UsageError(f"method.until={until} is out of range: give a share of the noise scale, 0 to 1")
        self.backbone, self.steps, self.factor, self.until = backbone, steps, factor, until
        self.guidance = Clip() if clip else PLAIN

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Any = None) -> EditResult:
        """Return the images drawn anew."""
        references = images_of(requests).to(self.backbone.device)
        images, calls = torch.empty_like(references), [0.0] * len(requests)
        for steps, rows in by_steps(requests, self.steps):
            images[rows] = self._drawn(references[rows], [requests[row] for row in rows], self.backbone.levels(steps))
            for row in rows:
                calls[row] = float(steps)
        return EditResult(images.clamp(-1, 1), scores={"network_calls": calls})

    def _drawn(self, references: Tensor, requests: Sequence[EditRequest], levels: Levels) -> Tensor:
        own = draws_of(requests) | {"device": self.backbone.device}
        shape = references.shape[1:]
        x = batch_noise(shape, purpose="ilvr/start", **own)
        steered = self._towards(references, levels, level_noise(shape, purpose="ilvr/reference", **own))
        noise = level_noise(shape, purpose="ilvr/step", **own)
        return sample(self.backbone, x, levels, step=ddpm, guidance=self.guidance, noise=noise, on_step=steered)

    def _towards(self, references: Tensor, levels: Levels, noise: Any) -> OnStep:
        last = self.until * len(self.backbone.schedule)

        def replaced(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor | None:
            if levels.times[i] < last:
                return None
            noised = levels.signal(j) * references + levels.noise(j) * noise(j)
            return x + low_pass(noised - x, self.factor)

        return replaced


class ILVR(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: a diffusion model of pixels.
        steps, factor, until, clip: see `ILVREditor`.
    """

    def __init__(self, *, backbone: Backbone, steps: int = 100, factor: int = 32, until: float = 0.0, clip: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.settings: dict[str, Any] = {"steps": steps, "factor": factor, "until": until, "clip": clip}

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        return ILVREditor(self.backbone, **self.settings)
