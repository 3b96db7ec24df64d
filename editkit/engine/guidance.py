"""Guidance: which conditions to query at a step, and how their predictions become one.

Guidances nest, and the order of the operations of a step is the order of nesting, from the inside out:
combine branches and rescale (`ClassifierFree`) -> energy gradient (`Energy`) -> clip x0 (`Clip`) -> solver step.
Whatever moves eps or x0 moves the other one along, so that a x0 + s eps keeps its value. Each moves *by a difference*;
so predictions whose x0 and eps come from different passes stay that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.lanes import evaluate
from editkit.engine.schedule import Schedule, divide
from editkit.errors import UsageError
from editkit.types import Condition, Prediction

EnergyFn = Callable[[Tensor, float | Tensor], Tensor]
Coefficients = Callable[[], tuple[float | Tensor, float | Tensor]]


class Guidance(Protocol):
    """The questions that the sampling loop asks at each step; times are model times, t a number or (B,)."""

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the conditions to query; they go through the network in one batched call."""
        ...

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return one prediction from those of the branches, in their order."""
        ...

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return whether `combine` differentiates the predictions with respect to x."""
        ...


@dataclass(frozen=True)
class Plain:
    """No guidance: the condition as it is."""

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the one condition."""
        return [cond]

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the one prediction."""
        return preds[0]

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return False."""
        return False


PLAIN = Plain()


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance, eps = u + scale (c - u) and x0 alike (arXiv 2207.12598; scale 1 = conditional only).

    At scale 1 and outside the interval only the conditional branch is queried, at scale 0 only the unconditional one.

    Attributes:
        scale: guidance weight w.
        uncond: the other branch: the empty prompt, or a negative one, or a function from the time to one.
        interval: (lowest, highest) time of guidance, None = all.
        rescale: pull each sample's std(eps) towards the conditional branch's by this share, 0 to 1 (arXiv 2305.08891, eq. 15).
        rescale_of: whose std, "eps" or "v". For v-models diffusers takes "v"; near alpha_bar 0 eps is x itself, whatever
            the branch, and rescaling it does nothing.

    Raises:
        UsageError: another `rescale_of`.
    """

    scale: float
    uncond: Condition | Callable[[float], Condition] | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    rescale_of: str = "eps"

    def __post_init__(self) -> None:
        check_rescale(self.rescale_of)

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return [cond, uncond], or the only one that matters."""
        if self.scale == 1 or not within(self.interval, t):
            return [cond]
        uncond = self.uncond(float(t)) if callable(self.uncond) else self.uncond
        return [uncond] if self.scale == 0 else [cond, uncond]

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the extrapolation from the unconditional to the conditional prediction."""
        if len(preds) == 1:
            return preds[0]
        c, u = preds
        guided = replace(c, x0=u.x0 + self.scale * (c.x0 - u.x0), eps=u.eps + self.scale * (c.eps - u.eps))
        return rescaled(guided, c, self.rescale, self.rescale_of, lambda: schedule.coefficients(t, x))

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True)
class Energy:
    """Descend a differentiable energy of the predicted x0: eps += scale s dE/dx (arXiv 2105.05233, algorithm 2, E = -log p).

    Attributes:
        energy: (x0 (B, C, H, W), t) -> one value per sample, (B,); low is good.
        scale: strength; 0 leaves the inner guidance untouched and records no graph.
        interval: (lowest, highest) time of guidance, None = all.
        through_unet: differentiate through the network. False takes its eps as constant, dx0/dx = 1/a: about half the
            cost, an approximation.
        inner: guidance applied before.

    Raises:
        ValueError: an inner `Clip`, which has to come last.
    """

    energy: EnergyFn
    scale: float
    interval: tuple[float, float] | None = None
    through_unet: bool = True
    inner: Guidance = PLAIN

    def __post_init__(self) -> None:
        if isinstance(self.inner, Clip):
            raise ValueError("clip after the energy: write Clip(inner=Energy(...)), not Energy(inner=Clip(...))")

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the inner guidance's branches."""
        return self.inner.branches(cond, t)

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the inner guidance's prediction with eps moved up the energy's slope, x0 down."""
        if not self._active(t):
            return self.inner.combine(x, t, preds, schedule)
        a, s = schedule.coefficients(t, x)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            pred = self.inner.combine(x, t, preds, schedule)
            if self.through_unet:
                slope = _slope(self.energy(pred.x0, t), x, wanted)
            else:
                leaf = pred.x0 if wanted and pred.x0.requires_grad else pred.x0.detach().requires_grad_()
                slope = divide(_slope(self.energy(leaf, t), leaf, wanted), a)
        return with_eps(pred, pred.eps + self.scale * s * slope, a, s)

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return whether the network's graph is needed at this time."""
        return (self._active(t) and self.through_unet) or self.inner.needs_grad(t)

    def _active(self, t: float | Tensor) -> bool:
        return self.scale != 0 and within(self.interval, t)


@dataclass(frozen=True)
class Clip:
    """Clip x0 to [-bound, bound] and move eps along (clip_denoised of the pixel models); goes outermost.

    The clipped share of each sample is left in `features["clipped"]`, (B,): where it is not 0 a step cannot be inverted.
    """

    bound: float = 1.0
    inner: Guidance = PLAIN

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the inner guidance's branches."""
        return self.inner.branches(cond, t)

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the inner guidance's prediction, clipped."""
        pred = self.inner.combine(x, t, preds, schedule)
        clipped = with_x0(pred, pred.x0.clamp(-self.bound, self.bound), *schedule.coefficients(t, x))
        share = (pred.x0.detach().abs() > self.bound).flatten(1).float().mean(1)
        return replace(clipped, features={**pred.features, "clipped": share})

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return the inner guidance's answer."""
        return self.inner.needs_grad(t)


@dataclass(frozen=True)
class Guided(Wrapper):
    """A denoiser under guidance, itself a denoiser: this is how an inverter is guided."""

    denoiser: Denoiser
    guidance: Guidance

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict with all branches in one call."""
        return predict(self.denoiser, x, t, cond, self.guidance)


def predict(denoiser: Denoiser, x: Tensor, t: float | Tensor, cond: Condition | None, guidance: Guidance) -> Prediction:
    """Query the denoiser at (x, t) under guidance.

    Where the guidance differentiates, a graph is recorded for it alone: what is returned is attached to a graph only
    if the caller has gradients on.

    Raises:
        RuntimeError: an energy under torch.inference_mode, where no graph can be recorded.
    """
    branches = guidance.branches(cond, t)
    if not guidance.needs_grad(t):
        return guidance.combine(x, t, evaluate(denoiser, [(x, t, branch) for branch in branches]), denoiser.schedule)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("this guidance needs gradients: call it under torch.no_grad(), not torch.inference_mode()")
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if wanted and x.requires_grad else x.detach().requires_grad_()
        preds = evaluate(denoiser, [(leaf, t, branch) for branch in branches])
    pred = guidance.combine(leaf, t, preds, denoiser.schedule)
    return pred if wanted else _detached(pred)


def with_x0(pred: Prediction, x0: Tensor, a: float | Tensor, s: float | Tensor) -> Prediction:
    """Return the prediction with another x0, and eps moved along so that a x0 + s eps keeps its value."""
    return replace(pred, x0=x0, eps=pred.eps - divide(a * (x0 - pred.x0), s))


def with_eps(pred: Prediction, eps: Tensor, a: float | Tensor, s: float | Tensor) -> Prediction:
    """Return the prediction with another eps, and x0 moved along so that a x0 + s eps keeps its value."""
    return replace(pred, eps=eps, x0=pred.x0 - divide(s * (eps - pred.eps), a))


def with_v(pred: Prediction, v: Tensor, a: float | Tensor, s: float | Tensor) -> Prediction:
    """Return the prediction with another v = a eps - s x0, so that a x0 + s eps keeps its value."""
    change = v - (a * pred.eps - s * pred.x0)
    return replace(pred, x0=pred.x0 - s * change, eps=pred.eps + a * change)


def rescaled(guided: Prediction, towards: Prediction, share: float, of: str, coefficients: Coefficients) -> Prediction:
    """Return a guided prediction with std(eps), or of="v" std(v), of each sample pulled by a share towards another's."""
    if share == 0:
        return guided
    a, s = coefficients()
    mine, other = (pred.eps if of == "eps" else a * pred.eps - s * pred.x0 for pred in (guided, towards))
    axes = tuple(range(1, mine.ndim))
    ratio = other.std(axes, keepdim=True) / mine.std(axes, keepdim=True)
    return (with_eps if of == "eps" else with_v)(guided, (share * ratio + 1 - share) * mine, a, s)


def check_rescale(of: str) -> None:
    """Raise UsageError unless rescaling knows this output."""
    if of not in ("eps", "v"):
        raise UsageError(f"unknown rescale_of {of!r} of classifier-free guidance: choose from eps, v")


def _slope(value: Tensor, wrt: Tensor, keep_graph: bool) -> Tensor:
    """Return d sum(value) / d wrt, zero for a value that does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(wrt)
    return torch.autograd.grad(value.sum(), wrt, create_graph=keep_graph, retain_graph=True, materialize_grads=True)[0]


def within(interval: tuple[float, float] | None, t: float | Tensor) -> bool:
    """Return whether a time lies in the interval, None being all times.

    Raises:
        ValueError: a time per sample.
    """
    if interval is None:
        return True
    if isinstance(t, Tensor) and t.numel() > 1:
        raise ValueError("guidance on an interval takes one time for the whole batch, not a time per sample")
    return interval[0] <= float(t) <= interval[1]


def _detached(pred: Prediction) -> Prediction:
    def free(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach()

    features = {name: value.detach() if isinstance(value, Tensor) else value for name, value in pred.features.items()}
    return Prediction(pred.x0.detach(), pred.eps.detach(), free(pred.logvar), free(pred.mean_shift), features)
