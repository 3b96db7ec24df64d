"""The single-image mode: the network is adapted to one picture and one pair of texts in a few iterations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.cache import InversionCache
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.losses.text_edit import TextEdit
from editkit.methods.weakly_supervised.effdiff.editor import Encoder, grid
from editkit.training.editor import Editor
from editkit.training.method import OptimizerFactory, Update
from editkit.types import EditRequest, EditResult

PATIENCE = 3  # iterations without progress that make a plateau


@dataclass(frozen=True)
class Fitted:
    """One image's way to its edit.

    Attributes:
        images: what comes back before any iteration and after each one, (N + 1, 3, H, W).
        calls: network calls of the whole, without backward passes.
    """

    images: Tensor
    calls: int


class SingleImageEditor(Editor):
    """Fine-tunes a copy of the network on the one image, and shows what comes back after every iteration.

    A request's strength picks the iteration: 1 = the last, 0.5 = that half way, 0 = before the first. Weights and optimiser
    start anew for every image. It ends after `iterations`, or when the CLIP direction's cosine has not risen by `plateau` in
    three iterations (ours; the paper leaves the choice to the user).

    Args:
        encode: from the image to its state at t0.
        criterion: (source text, target text) -> the losses.
        optimizer: makes the optimiser of the copy's parameters.
        source_prompt: what images show, unless a request says otherwise.
        n_test: levels of the way back; a request's `steps` replaces it.
        iterations: at most.
        copies: noised copies of the image that an iteration learns from; the first one is shown.
        growth: factor on the learning rate after each iteration.
        plateau: smallest rise of the cosine that counts; 0 never stops early.
        cache: keeps inversions, for the encoder that makes some.
    """

    name = "effdiff"
    needs = ("image", "prompt")
    per_image = True

    def __init__(
        self,
        encode: Encoder,
        criterion: Callable[[str, str], TextEdit],
        optimizer: OptimizerFactory,
        *,
        source_prompt: str,
        n_test: int = 6,
        iterations: int = 20,
        copies: int = 1,
        growth: float = 1.3,
        plateau: float = 0.005,
        cache: InversionCache | None = None,
    ) -> None:
        self.encode, self.criterion, self.optimizer, self.source_prompt = encode, criterion, optimizer, source_prompt
        self.n_test, self.iterations, self.copies, self.growth, self.plateau = n_test, iterations, copies, growth, plateau
        self.backbone, self.cache = encode.backbone, cache

    def prepare(self, requests: Sequence[EditRequest]) -> list[Fitted]:
        """Adapt to each request by itself; gradients are switched on inside."""
        return [self.fit(request) for request in requests]

    def fit(self, request: EditRequest) -> Fitted:
        """Return what the image becomes, iteration by iteration."""
        network = copy.deepcopy(self.backbone).float().requires_grad_(True)
        images = request.image.to(self.backbone.device).expand(self.copies, -1, -1, -1)
        numbers = [request.sample * self.copies + n for n in range(self.copies)]
        keys = [request.key] * self.copies
        x = self.encode(images, keys, seed=[request.seed] * self.copies, sample=numbers, cache=self.cache)
        criterion = self.criterion(request.source_prompt or self.source_prompt, request.prompt or "")
        with torch.no_grad():
            features = criterion.features(images)
        optimizer = self.optimizer(list(network.parameters()))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.growth)
        steps = request.steps or self.n_test
        shown, cosines = [self.decoded(network, x[:1], steps)], [0.0]
        while len(cosines) <= self.iterations and not stalled(cosines, self.plateau):
            with torch.enable_grad():
                losses, report = criterion(self.backbone.decode(network(x, float(self.encode.t0)).x0), images, features)
                Update("unet", losses).total().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
            cosines.append(float(report["clip_direction"].mean()))
            shown.append(self.decoded(network, x[:1], steps))
        done = len(shown) - 1
        return Fitted(torch.cat(shown), self.encode.calls + done + (done + 1) * steps)

    @torch.no_grad()
    def decoded(self, network: Backbone, x: Tensor, steps: int) -> Tensor:
        """Return the images that states x at t0 come back as."""
        return self.backbone.decode(sample(network, x, grid(self.backbone.schedule, steps, self.encode.t0)))

    def edit(self, requests: Sequence[EditRequest], state: list[Fitted] | None = None) -> EditResult:
        """Return the image of the iteration that each strength picks.

        Raises:
            UsageError: a strength outside 0 to 1.
        """
        state = self.prepare(requests) if state is None else state
        images, iterations = [], []
        for request, fitted in zip(requests, state, strict=True):
            strength = 1.0 if request.strength is None else request.strength
            if not 0 <= strength <= 1:
                raise UsageError(f"--strength {strength:g}: with one image it picks an iteration, from 0 (none) to 1 (the last)")
            iterations.append(round(strength * (len(fitted.images) - 1)))
            images.append(fitted.images[iterations[-1]])
        scores = {"network_calls": [float(one.calls) for one in state], "iterations": [float(n) for n in iterations]}
        return EditResult(torch.stack(images), scores=scores)


def stalled(cosines: Sequence[float], plateau: float) -> bool:
    """Say whether the last `PATIENCE` cosines bring less than `plateau` over the best before them."""
    if plateau <= 0 or len(cosines) <= PATIENCE:
        return False
    return max(cosines[-PATIENCE:]) < max(cosines[:-PATIENCE]) + plateau
