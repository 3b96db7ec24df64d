"""The three-phase generative process: shifted x0 above t_edit, plain below it, stochastic below t_boost."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.engine.asymmetric import Asymmetric
from editkit.engine.rng import level_noise
from editkit.engine.sample import sample
from editkit.engine.steps import History, Step, ddim
from editkit.errors import UsageError, UserError, suggestion
from editkit.training.editor import draws_of
from editkit.types import EditRequest, Levels, Prediction

Delta = Callable[[Tensor, Tensor, float], Tensor]
Curve = tuple[tuple[float, float], ...]
GATINGS = ("own", "official")


@dataclass(frozen=True)
class Phases:
    """Which part of the process does what, by model time.

    Attributes:
        t_edit: the shift acts at times >= t_edit.
        t_boost: each step from a time < t_boost adds noise (eta 1), "quality boosting"; 0 = deterministic throughout.
    """

    t_edit: float
    t_boost: float = 0.0

    def edits(self, t: float) -> bool:
        """Say whether the shift acts at time t."""
        return t >= self.t_edit

    def edited(self, levels: Levels) -> list[int]:
        """Return the level indices at which the shift acts, noisiest first."""
        return [i for i in range(len(levels) - 1, 0, -1) if self.edits(levels.times[i])]


@dataclass(frozen=True)
class Tables:
    """Mean perceptual distances along the DDIM inversion of a backbone's images, as (t, distance) with rising t.

    Attributes:
        predicted: d(x0, P_t), of the image to its one-step estimate.
        noisy: d(x0, x_t), of the image to the state itself.
        backbone: digest of the backbone, "" if unknown.
    """

    predicted: Curve
    noisy: Curve
    backbone: str = ""

    @classmethod
    def read(cls, source: str | Path | Mapping[str, Any]) -> Tables:
        """Read what `calibrate` wrote, or the same as a mapping in a recipe.

        Raises:
            UserError: no such file, or something else in it.
        """
        try:
            values = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
            curves = [tuple(sorted((float(t), float(d)) for t, d in values[name])) for name in ("predicted", "noisy")]
            return cls(*curves, backbone=str(values.get("backbone", "")))
        except FileNotFoundError as error:
            raise UserError(f"there is no method.tables={source}: write it with `editkit task asyrp calibrate`") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"method.tables={source} does not hold predicted and noisy as lists of [t, distance]") from error

    def write(self, path: Path) -> Path:
        """Write as JSON and return the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"backbone": self.backbone, "predicted": self.predicted, "noisy": self.noisy}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        return path

    def t_edit(self, text_cosine: float, threshold: float = 0.33) -> int:
        """Return the first time at which the estimate has moved by threshold * cos(texts): farther texts, a longer edit."""
        return _crossing(self.predicted, threshold * text_cosine, "edit_threshold")

    def t_boost(self, threshold: float = 1.2) -> int:
        """Return the first time at which the state itself is as far as the threshold from its image."""
        return _crossing(self.noisy, threshold, "boost_threshold")


@dataclass(frozen=True)
class Attribute:
    """A trained shift of the bottleneck and where it acts.

    Attributes:
        name: what a person calls it.
        delta: (h, time embedding, t) -> the shift of h at strength 1 on `n_train` levels.
        phases: its interval.
        n_train: number of levels that it was trained on.
        text_cosine: cosine of its two texts' embeddings; the higher, the smaller the edit.
        strength: factor on every strength that a request asks for.
    """

    name: str
    delta: Delta
    phases: Phases
    n_train: int
    text_cosine: float = 1.0
    strength: float = 1.0


@dataclass
class Sources:
    """What the frozen model says of a batch of images, once for the whole training.

    Attributes:
        x: states at the noisiest level, where the shift begins, (B, C, H, W).
        x0: estimates P_src at every edited level, (B, S, C, H, W).
        features: CLIP embeddings of what the edit is compared with, (B, S or 1, D).
    """

    x: Tensor
    x0: Tensor
    features: Tensor


class MeanShift(nn.Module):
    """A shift that does not look at the image: the mean delta-h per time, or one for all times (the global one).

    Args:
        values: (S, C, h, w).
        times: the S times; a time in between takes the nearest.
    """

    def __init__(self, values: Tensor, times: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("values", values.float())
        self.times = tuple(float(t) for t in times)

    def forward(self, h: Tensor, temb: Tensor, t: float) -> Tensor:
        """Return the stored shift of the nearest time, (1, C, h, w)."""
        nearest = min(range(len(self.times)), key=lambda k: abs(self.times[k] - t))
        return self.values[nearest : nearest + 1].to(h.device)


def gated(attributes: Sequence[Attribute], gating: str) -> list[Attribute]:
    """Return the attributes with the phases that they act in together.

    Args:
        gating: "own" keeps each one's own interval; "official" gives all of them that of the attribute whose texts are closest
            (the shortest interval), as the released code does.

    Raises:
        UsageError: another name.
    """
    if gating not in GATINGS:
        raise UsageError(f"method.gating={gating} is unknown.{suggestion(gating, GATINGS)} Choose from {', '.join(GATINGS)}")
    if gating == "own" or not attributes:
        return list(attributes)
    closest = max(attributes, key=lambda attribute: attribute.text_cosine)
    return [replace(attribute, phases=closest.phases) for attribute in attributes]


def coefficients(attributes: Sequence[Attribute], strengths: Tensor, n_test: int) -> Tensor:
    """Return the factor of each attribute's shift, (B, k): strength * n_train / n_test / sqrt(k).

    n_train / n_test keeps the sum of the shifts over the interval, whatever the number of steps.

    Args:
        strengths: (B, k).
        n_test: number of levels that are walked.
    """
    scales = [attribute.strength * attribute.n_train / n_test / math.sqrt(len(attributes)) for attribute in attributes]
    return strengths * torch.tensor(scales, dtype=strengths.dtype)


def shift_of(backbone: Backbone, attributes: Sequence[Attribute], factors: Tensor) -> Callable[[Tensor, float], Tensor | None]:
    """Return (h, t) -> sum of factor * delta(h), each from the unshifted h; None where nothing acts.

    Args:
        factors: (B, k), on the CPU, from `coefficients`.
    """
    used = [(k, attribute) for k, attribute in enumerate(attributes) if bool(factors[:, k].any())]

    def shift(h: Tensor, t: float) -> Tensor | None:
        acting = [(k, attribute) for k, attribute in used if attribute.phases.edits(t)]
        if not acting:
            return None
        temb = backbone.time_embedding(t).float()
        scale = factors.to(h.device, torch.float32)[:, :, None, None, None]
        return torch.stack([scale[:, k] * attribute.delta(h.float(), temb, t) for k, attribute in acting]).sum(0).to(h.dtype)

    return shift


def boosted(t_boost: float) -> Step:
    """Return the DDIM step whose eta is 1 at times below t_boost and 0 above."""

    def step(levels: Levels, i: int, j: int, x: Tensor, pred: Prediction, history: History, noise: Tensor | None) -> Tensor:
        return ddim(levels, i, j, x, pred, history, noise, eta=1.0 if levels.times[i] < t_boost else 0.0)

    return step


def generate(
    backbone: Backbone,
    attributes: Sequence[Attribute],
    strengths: Tensor,
    x: Tensor,
    levels: Levels,
    requests: Sequence[EditRequest],
) -> Tensor:
    """Return what the states x, (B, C, H, W), become by the three-phase process: edited images.

    Args:
        strengths: (B, k), one of each attribute for each image.
        x: states at the noisiest level, from DDIM inversion on `levels`.
        requests: name the images for the noise of the last phase.
    """
    t_boost = min((attribute.phases.t_boost for attribute in attributes), default=0.0)
    factors = coefficients(attributes, strengths.cpu(), len(levels) - 1)
    draw = level_noise(
        x.shape[1:],
        **draws_of(requests),
        purpose="asyrp/boost",
        device=x.device,
    )
    return sample(
        Asymmetric(backbone, shift_of(backbone, attributes, factors)),
        x,
        levels,
        step=boosted(t_boost),
        noise=lambda i: draw(i) if levels.times[i] < t_boost else None,
    )


def _crossing(curve: Curve, level: float, name: str) -> int:
    """Return the smallest whole t at which the curve, straight between its points, reaches a level."""
    if curve[0][1] >= level:
        return math.ceil(curve[0][0])
    for (t0, d0), (t1, d1) in itertools.pairwise(curve):
        if d1 >= level:
            return math.ceil(t0 + (t1 - t0) * (level - d0) / (d1 - d0) - 1e-9)
    highest = max(distance for _, distance in curve)
    raise UserError(f"the distances along the inversion only reach {highest:.3g}, not {level:.3g}: lower method.{name}")
