"""The data that flows between the layers: plain dataclasses over torch tensors.

Conventions everywhere: images are float32 RGB in [-1, 1], shape (B, 3, H, W) in batches and (3, H, W) alone; masks are
float32 (B, 1, H, W) or (1, H, W) with 1 = edit here; noise levels are named by their cumulative alpha, `alpha_bar`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """The noise levels that inversion and sampling both walk, index 0 the clean end and the last the noisy end.

    Attributes:
        alpha_bar: cumulative alpha of each level, falling, in float64; 1.0 is a clean image.
        times: the model time to query at each level; -1.0 at a clean end that is never queried.
        entry: the level at which inversion places an image. 0 treats it as exactly clean; the pixel methods' official
            code feeds the image as if it were already at the first queried level, which is entry 1.

    Raises:
        ValueError: lists of different lengths, fewer than two levels, or alpha_bar that does not fall.
    """

    alpha_bar: tuple[float, ...]
    times: tuple[float, ...]
    entry: int = 0

    def __post_init__(self) -> None:
        if len(self.alpha_bar) != len(self.times) or len(self.times) < 2:
            counts = f"{len(self.times)} times and {len(self.alpha_bar)} alpha_bar"
            raise ValueError(f"levels need two entries or more, as many times as alpha_bar; got {counts}")
        if any(low < high for low, high in zip(self.alpha_bar, self.alpha_bar[1:], strict=False)):
            raise ValueError("alpha_bar must fall from the clean end to the noisy end")

    def __len__(self) -> int:
        return len(self.times)

    def signal(self, i: int) -> float:
        """Return a_i = sqrt(alpha_bar_i)."""
        return math.sqrt(self.alpha_bar[i])

    def noise(self, i: int) -> float:
        """Return s_i = sqrt(1 - alpha_bar_i)."""
        return math.sqrt(1.0 - self.alpha_bar[i])

    def digest(self) -> str:
        """Return a hash that two lists share when they are the same levels, whatever last bits their machines gave them."""
        alpha_bar, times = ([round(value, 9) for value in values] for values in (self.alpha_bar, self.times))
        return hashlib.sha256(json.dumps([alpha_bar, times, self.entry]).encode()).hexdigest()[:16]


@dataclass
class Prediction:
    """What a denoiser says about x_t, shape (B, C, H, W) each.

    `x0` and `eps` are independent fields on purpose: asymmetric methods take them from different passes, and guidance
    may move one without the other. A solver step lands on a_j * x0 + s_j * eps.

    Attributes:
        x0: estimate of the clean sample.
        eps: estimate of the noise.
        logvar: log variance of the reverse step, for networks that learn it.
        mean_shift: added by a step after its mean and before its noise (classifier guidance, energies).
        features: anything a tap collected, by name.
    """

    x0: Tensor
    eps: Tensor
    logvar: Tensor | None = None
    mean_shift: Tensor | None = None
    features: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """What a denoiser is conditioned on; every field is optional and batched along its first axis.

    Attributes:
        tokens: text or image tokens for cross-attention, (B, L, D).
        mask: attention mask of the tokens, (B, L).
        vector: pooled conditioning, (B, D).
        concat: extra input channels, (B, C', H, W).
        control: conditions of side networks by name (a ControlNet may receive another prompt than the UNet).
        extra: whatever a single method needs, by name.
    """

    tokens: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    control: Mapping[str, Condition] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class EditRequest:
    """One image to edit and all that the user said about it. Fields that a method does not list in `needs` may be None.

    Attributes:
        key: names the image (its relative path); noise is drawn from (seed, key, sample), never from the batch position.
        image: (3, H, W) in [-1, 1], already at the model's size; None for methods that start from noise.
        mask: (1, H, W), 1 = edit here.
        strength: how far to go, 1 = as trained; None = the method's default. Negative goes the other way where it can.
        steps: sampling steps; None = the method's default.
    """

    key: str
    image: Tensor | None = None
    mask: Tensor | None = None
    references: Sequence[Tensor] = ()
    reference_masks: Sequence[Tensor] = ()
    prompt: str | None = None
    source_prompt: str | None = None
    instruction: str | None = None
    sketch: Tensor | None = None
    segmentation: Tensor | None = None
    stroke: Tensor | None = None
    box: tuple[float, float, float, float] | None = None
    labels: str | None = None
    example_before: Tensor | None = None
    example_after: Tensor | None = None
    strength: float | None = None
    steps: int | None = None
    seed: int = 0
    sample: int = 0

    def missing(self, needs: Sequence[str]) -> list[str]:
        """Return the names in `needs` that this request lacks, in their order."""
        return [name for name in needs if _is_empty(getattr(self, name))]

    def with_(self, **changes: Any) -> EditRequest:
        """Return a copy with the named fields changed."""
        return replace(self, **changes)


@dataclass
class EditResult:
    """What an editor returns for a batch of requests, in their order.

    Attributes:
        images: (B, 3, H, W) in [-1, 1].
        masks: (B, 1, H, W) that the method found itself, if any.
        texts: one string each, if the method writes any.
        scores: per-image figures by name, each a list of B floats (network calls, reconstruction PSNR...).
    """

    images: Tensor
    masks: Tensor | None = None
    texts: list[str] | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ValueError(f"EditResult.images must be (B, 3, H, W), got {tuple(self.images.shape)}")


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, tuple, list)) and len(value) == 0)
