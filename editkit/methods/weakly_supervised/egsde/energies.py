"""The two energies of EGSDE as guidance: a shift of the mean of each reverse step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.engine.sample import Noise
from editkit.engine.schedule import Schedule
from editkit.networks.low_pass import squared_distance_slope
from editkit.types import Condition, Levels, Prediction

Features = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class TwoEnergies:
    """Shift a step's mean by -beta / sqrt(alpha) (realism dS/dy + faithfulness dD/dy) at the state y (section 3.3, as the code).

    S is the cosine, over channels and averaged over places, of the classifier's features of y and of the source noised to the
    same time; D is the squared distance of their low frequencies, summed over pixels. No gradient passes the diffusion model or
    the noised source. The variance that a network learned is dropped, as the released code does.

    Attributes:
        source: images (B, 3, H, W) in [-1, 1].
        noise: level index -> the noise (B, 3, H, W) that the source has there.
        levels: what is walked down; alpha of a step is that of the levels kept, so that the weights keep their meaning.
        features: (x, t) -> features (B, C, h, w).
        realism, faithfulness: the paper's lambda_s and lambda_i; 0 leaves that energy out and computes nothing.
        factor: of the low pass, see `editkit.networks.low_pass`.
    """

    source: Tensor
    noise: Noise
    levels: Levels
    features: Features
    realism: float
    faithfulness: float
    factor: int

    def branches(self, cond: Condition | None, t: float | Tensor) -> list[Condition | None]:
        """Return the one condition."""
        return [cond]

    def needs_grad(self, t: float | Tensor) -> bool:
        """Return False: what is differentiated is the classifier."""
        return False

    def combine(self, x: Tensor, t: float | Tensor, preds: Sequence[Prediction], schedule: Schedule) -> Prediction:
        """Return the prediction with the shift of the mean of the step that follows."""
        pred = preds[0]
        features = {name: value for name, value in pred.features.items() if name != "variance"}
        return replace(pred, logvar=None, features=features, mean_shift=self.shift(x, self.levels.times.index(float(t))))

    def shift(self, y: Tensor, i: int) -> Tensor:
        """Return the shift of the step from level i, like y."""
        alpha = self.levels.alpha_bar[i] / self.levels.alpha_bar[i - 1]
        source = self.levels.signal(i) * self.source + self.levels.noise(i) * self.noise(i)
        slope = torch.zeros_like(y)
        if self.realism:
            slope = slope + self.realism * self._likeness_slope(y, source, self.levels.times[i])
        if self.faithfulness:
            slope = slope + self.faithfulness * squared_distance_slope(y, source, self.factor)
        return -(1 - alpha) / alpha**0.5 * slope

    def _likeness_slope(self, y: Tensor, source: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            theirs = self.features(source, t)
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            return torch.autograd.grad(likeness(self.features(leaf, t), theirs).sum(), leaf)[0]


def likeness(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine over the channels of two maps (B, C, h, w), averaged over the places, (B,)."""
    return (F.normalize(one.float(), dim=1, eps=1e-10) * F.normalize(other.float(), dim=1, eps=1e-10)).sum(1).mean((1, 2))
