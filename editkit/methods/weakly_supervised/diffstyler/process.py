"""The dual walk, where it starts, and what guides the style's half of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.engine.denoiser import Denoiser, Wrapper
from editkit.engine.guidance import EnergyFn
from editkit.engine.invert import DDIM, PLMS, Inverter, SDEdit
from editkit.engine.noised import noised
from editkit.engine.rng import generator
from editkit.engine.sample import Noise, sample
from editkit.engine.trajectory import Trajectory, settings_of
from editkit.errors import UsageError, suggestion
from editkit.losses.clip_direction import TextImageEncoder
from editkit.losses.perceptual import FeatureStages
from editkit.losses.style import roughness, spherical_distance, square_crop
from editkit.types import Condition, EditRequest, Levels, Prediction

STARTS = ("ode", "free", "sdedit")
ODE: dict[str, type[PLMS] | type[DDIM]] = {"plms": PLMS, "ddim": DDIM}
DEPTH = 0.8  # of the starts that draw noise


@dataclass(frozen=True)
class Dual(Wrapper):
    """v = content_share v_content + style_share v_style, whatever each network puts out; the shares need not sum to 1.

    Attributes:
        denoiser: the content model, under its guidance; it alone is given the condition.
        style: the style model, under its own.
        content_share, style_share: of each image, (B,); a style that no image has a share of is not asked.
    """

    denoiser: Denoiser
    style: Denoiser
    content_share: Tensor
    style_share: Tensor

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict x0 and eps of x (B, C, H, W) by the mixed v."""
        v = _column(self.content_share, x) * self.schedule.output(self.denoiser(x, t, cond), t, "v")
        if self.style_share.any():
            v = v + _column(self.style_share, x) * self.schedule.output(self.style(x, t), t, "v")
        return self.schedule.convert(x, t, v, "v")


@dataclass(frozen=True)
class Weights:
    """What each loss of the predicted image counts; those of 0 are not computed.

    Attributes:
        clip: spherical distance of its crops from the text.
        content: squared difference of its deep features from the picture's, the last two stages, each averaged.
        smooth: roughness.
        lpips: distance of the same network's features, as that network weighs them.
    """

    clip: float = 500.0
    content: float = 3.0
    smooth: float = 0.0
    lpips: float = 0.0

    def any(self) -> bool:
        """Return whether there is anything to follow."""
        return any(asdict(self).values())


@dataclass(frozen=True)
class Critic:
    """The losses that guide the style model.

    Departures from the released code: the picture's features are of what is diffused, in the same range (theirs are of another
    resize, and of [0, 1] against [-1, 1]); its contrastive and its aesthetic loss, of which the first has no gradient and the
    second a weight of 0, are left out; LPIPS and the content loss share one network.

    Attributes:
        clip: of the text loss.
        features: of the other two, images in [-1, 1] -> stages.
        crops: of each image, at each step.
        smallest: share of the shorter side that a crop has at least, and that all are reduced to.
    """

    clip: TextImageEncoder
    features: FeatureStages
    weights: Weights
    crops: int = 1
    smallest: float = 0.875

    def energy(self, requests: Sequence[EditRequest], images: Tensor) -> EnergyFn:
        """Return (x0 (B, 3, H, W), t) -> the loss of each image, (B,), towards its request's prompt and near to its picture."""
        weights = self.weights
        texts = self.clip.text([request.prompt or "" for request in requests])
        compared = bool(weights.content or weights.lpips)
        theirs = self.features(images) if compared else []

        def energy(x0: Tensor, t: float | Tensor) -> Tensor:
            total, ours = x0.new_zeros(len(x0)), self.features(x0) if compared else []
            if weights.clip:
                total = total + weights.clip * self.text_distance(x0, texts, requests, float(t))
            if weights.content:
                total = total + weights.content * content_distance(ours, theirs)
            if weights.lpips:
                total = total + weights.lpips * self.features.compare(ours, theirs)
            return total + weights.smooth * roughness(x0) if weights.smooth else total

        return energy

    def text_distance(self, x0: Tensor, texts: Tensor, requests: Sequence[EditRequest], t: float) -> Tensor:
        """Return the distance of crops from the texts (B, D), averaged over the crops, (B,).

        A crop depends on the request and the time alone.
        """
        least = round(self.smallest * min(x0.shape[2:]))
        found = []
        for k in range(self.crops):
            drawn = [
                generator(seed=one.seed, key=one.key, sample=one.sample, purpose=f"diffstyler/crop/{k}/{t:g}") for one in requests
            ]
            squares = [square_crop(image, least, own) for image, own in zip(x0, drawn, strict=True)]
            found.append(spherical_distance(self.clip.image(torch.stack(squares)), texts))
        return torch.stack(found).mean(0)


def content_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Return the sum of the mean squared differences of the last two stages, (B,)."""
    pairs = list(zip(ours, theirs, strict=True))[-2:]
    return torch.stack([F.mse_loss(a, b, reduction="none").mean((1, 2, 3)) for a, b in pairs]).sum(0)


# Where the walk starts.


@dataclass(frozen=True)
class Shallow:
    """An inverter on the cleaner part of the levels.

    Attributes:
        inner: the inverter.
        depth: share of the levels that are walked; fewer keep more of the picture.
    """

    inner: Inverter
    depth: float

    @property
    def name(self) -> str:
        """The inner one's name."""
        return self.inner.name

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Walk x0 (B, C, H, W) up to the last level of the part."""
        last = max(int((len(levels) - 1) * self.depth + 1e-9), levels.entry + 1)
        part = Levels(levels.alpha_bar[: last + 1], levels.times[: last + 1], levels.entry)
        return self.inner.invert(denoiser, x0, part, cond, noise=noise)


@dataclass(frozen=True)
class Free:
    """Noise to the noisiest level and down again without any text, as the paper's figure has it.

    Attributes:
        depth: share of the levels that are left for the style.
    """

    name: ClassVar[str] = "free"
    depth: float = DEPTH

    def invert(
        self, denoiser: Denoiser, x0: Tensor, levels: Levels, cond: Condition | None = None, *, noise: Noise | None = None
    ) -> Trajectory:
        """Return the state of x0 (B, C, H, W) at the level where the style begins; takes noise(the noisiest level)."""
        top = len(levels) - 1
        start = int(top * self.depth + 1e-9)
        x = sample(denoiser, noised(x0, levels, top, noise), levels, cond, stop=start)
        return Trajectory(levels, start, {start: x}, inverter=self.name, settings=settings_of(self), calls=top - start)


def start_named(start: str, solver: str, depth: float | None) -> Inverter:
    """Return how a picture becomes what the dual walk starts from.

    Args:
        start: "ode" inverts it; "free" see `Free`; "sdedit" noises it.
        solver: of the way up, "plms" or "ddim".
        depth: share of the levels that the dual walk goes down; None: all of an inversion, `DEPTH` of the others.

    Raises:
        UsageError: an unknown name, or a depth out of range.
    """
    for key, value, known in (("start", start, STARTS), ("solver", solver, tuple(ODE))):
        if value not in known:
            raise UsageError(f"method.{key}={value} is unknown.{suggestion(value, known)} Choose from {', '.join(known)}")
    if depth is not None and not 0 < depth <= 1:
        raise UsageError(f"method.depth={depth} is out of range: give a share of the levels, above 0 and at most 1")
    others: dict[str, Any] = {"free": Free, "sdedit": SDEdit}
    return Shallow(ODE[solver](), depth or 1.0) if start == "ode" else others[start](depth or DEPTH)


def _column(share: Tensor, like: Tensor) -> Tensor:
    return share.to(like)[:, None, None, None]
