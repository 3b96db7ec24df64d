"""The terms that CycleNet is trained by, and where their gradients go (arXiv 2310.13165, section 3, as the released code has it).

Notation: eps(x; c, u, h), c the tokens of the UNet, u those of the ControlNet, h its hint; S the source text, G the target's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from editkit.backbones.controlnet import Controlled, hint
from editkit.backbones.latent import Residuals
from editkit.engine.denoiser import Wrapper
from editkit.engine.lanes import evaluate
from editkit.networks.constant import as_constant
from editkit.types import Condition, Prediction

NET = "image"  # name of the ControlNet: its hint is the image itself


@dataclass(frozen=True)
class Weights:
    """Weights of the terms; without consistency and cycle it is FastCycleNet, with three passes in place of five."""

    reconstruction: float = 1.0
    invariance: float = 0.1
    consistency: float = 0.1
    cycle: float = 0.01


@dataclass(frozen=True)
class Batch:
    """What the terms of a batch depend on.

    Attributes:
        z: scaled latents of the images, (B, C, h, w).
        hint: the images, (B, 3, H, W) in [0, 1].
        source, target: tokens S and G, (B, L, D).
        t: one time a sample, the same in all passes: the two halves of a cycle cancel at equal times alone.
        noise, fresh: of x_t and of y_t, like z.
    """

    z: Tensor
    hint: Tensor
    source: Tensor
    target: Tensor
    t: Tensor
    noise: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Routed(Wrapper):
    """A controlled backbone as it is trained: x has a gradient through the ControlNet alone, never through the UNet.

    Attributes:
        denoiser: its UNet's decoder and its ControlNet are what is trained.
        recompute: run each pass again in the backward pass instead of keeping its activations.
    """

    denoiser: Controlled
    recompute: bool = False

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict from latents x (B, C, h, w)."""
        return self.unet(x, t, cond, self.control(x, t, cond))

    def control(self, x: Tensor, t: float | Tensor, cond: Condition | None) -> Residuals | None:
        """Return what the ControlNet adds; the UNet's tokens do not matter."""
        return self._run(lambda: self.denoiser.residuals(x, t, cond))

    def unet(self, x: Tensor, t: float | Tensor, cond: Condition | None, control: Residuals | None) -> Prediction:
        """Predict with what `control` returned."""
        return self._run(lambda: self.denoiser.backbone(x.detach(), t, cond, residuals=control))

    def unet_as_constant(self, x: Tensor, t: float | Tensor, cond: Condition | None, control: Residuals | None) -> Prediction:
        """Predict as `unet` does; the UNet's weights get no gradient, what the ControlNet adds does."""
        return self._run(lambda: as_constant(self.denoiser.backbone, x.detach(), t, cond, residuals=control))

    def _run(self, call: Callable[[], Any]) -> Any:
        return checkpoint(call, use_reentrant=False) if self.recompute else call()


def terms(
    network: Controlled, batch: Batch, weights: Weights, *, clamp_hint: bool = False, recompute: bool = False
) -> dict[str, Tensor]:
    """Return the weighted terms of a batch, (B,) each: those that have a weight.

    With e1 = eps(x_t; S, S, x), e2 = eps(x_t; G, S, x) and y the image that e2 leads to:
        reconstruction  |e1 - noise|^2
        invariance      |e2 - sg eps(x_t; G, G, y)|^2, for the ControlNet alone: e2's UNet is taken as a constant
        consistency     |sg e2 + eps(y_t; S, S, x) - (noise + fresh)|^2, the paper's cycle loss
        cycle           |sg e2 + eps(y_t; S, G, y) - (noise + fresh)|^2, of the released code; y_t with its gradient
    Where the backbone predicts v, all are of v instead: that is eps's error over alpha_bar, since x_t is the same, so that the
    times at which noise hides everything, and the text alone decides, are trained too (ours; the paper's backbone predicts eps).
    e1 and e2 share one pass of the ControlNet, whose inputs are the same, and the last two are one batch.

    Args:
        network: backbone and ControlNet.
        batch: see `Batch`.
        weights: see `Weights`.
        clamp_hint: keep the decoded y, which becomes a hint, in [0, 1]; the released code does not.
        recompute: see `Routed`.
    """
    routed, t = Routed(network, recompute), batch.t
    x = network.schedule.add_noise(batch.z, t, batch.noise)
    own = told(batch.source, batch.source, batch.hint)
    control = routed.control(x, t, own)
    found: dict[str, Tensor] = {}
    said = partial(network.schedule.output, t=t, kind=network.parameterization)
    right = said(Prediction(batch.z, batch.noise))
    if weights.reconstruction:
        found["reconstruction"] = _error(said(routed.unet(x, t, own, control)), right)
    moved = routed.unet_as_constant(x, t, told(batch.target, batch.source, batch.hint), control)
    y = _as_hint(network, moved.x0, clamp_hint)
    if weights.invariance:
        with torch.no_grad():
            settled = said(routed(x, t, told(batch.target, batch.target, y)))
        found["invariance"] = _error(said(moved), settled)
    lanes = {name: lane for name, lane in _ways_back(network, batch, moved, y).items() if getattr(weights, name)}
    if lanes:
        there = said(moved).detach()
        sums = right + said(Prediction(moved.x0.detach(), batch.fresh))
        for name, back in zip(lanes, evaluate(routed, list(lanes.values())), strict=True):
            found[name] = _error(there + said(back), sums)
    return {name: getattr(weights, name) * error for name, error in found.items()}


def told(unet: Tensor, net: Tensor, image: Tensor) -> Condition:
    """Return the tokens of the UNet, and those of the ControlNet with its hint (B, 3, H, W) in [0, 1]."""
    return Condition(tokens=unet, control={NET: hint(image, net)})


def _ways_back(network: Controlled, batch: Batch, moved: Prediction, y: Tensor) -> dict[str, tuple[Tensor, Tensor, Condition]]:
    """Return the queries at y_t that lead back to the source text; their values of y_t are the same."""
    state = network.schedule.add_noise(moved.x0, batch.t, batch.fresh)
    return {
        "consistency": (state.detach(), batch.t, told(batch.source, batch.source, batch.hint)),
        "cycle": (state, batch.t, told(batch.source, batch.target, y)),
    }


@torch.no_grad()
def _as_hint(network: Controlled, latents: Tensor, clamp: bool) -> Tensor:
    image = network.backbone.decode(latents) / 2 + 0.5
    return image.clamp(0, 1) if clamp else image


def _error(guess: Tensor, target: Tensor) -> Tensor:
    return (guess - target).square().mean((1, 2, 3))
