"""What is learned over z_sem of diffusion autoencoders (arXiv 2111.15640): how it is distributed, and attributes in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.features import FeatureNet
from editkit.backbones.strided import strided_levels
from editkit.engine.schedule import Schedule
from editkit.networks.skip_mlp import SkipMLP
from editkit.types import Condition, Levels, Prediction

STEPS, BETA = 1000, 0.008  # the same noise is added at all times


class CodeScale(nn.Module):
    """Mean and standard deviation of z_sem over the autoencoder's training images, (dim,) each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def normalize(self, code: Tensor) -> Tensor:
        """Return codes (B, dim) with mean 0 and deviation 1 in every dimension."""
        return (code - self.mean) / self.std

    def denormalize(self, code: Tensor) -> Tensor:
        """Return z_sem of normalised codes (B, dim)."""
        return code * self.std + self.mean


class LatentDDIM(FeatureNet):
    """A Denoiser of normalised z_sem, (B, dim) in place of pictures; `scale` leads from z_sem and back.

    Args:
        dim: of z_sem.
        network: further arguments of `SkipMLP`.
    """

    kind = "diffae-latent"
    parameterization = "eps"

    def __init__(self, *, dim: int = 512, **network: Any) -> None:
        super().__init__(dim=dim, **network)
        self.network = SkipMLP(dim, **network)
        self.scale = CodeScale(dim)
        self.schedule = Schedule.from_betas(torch.full((STEPS,), BETA, dtype=torch.float64))

    def forward(self, z: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        """Predict the clean code and the noise of normalised codes z (B, dim) at model time t, a number or (B,)."""
        times = torch.as_tensor(t, device=z.device).expand(len(z))
        return self.schedule.convert(z, t, self.network(z, times), self.parameterization)

    def levels(self, n: int) -> Levels:
        """Return the levels of the published code, every (1000 / n)th time from 0."""
        return strided_levels(self.schedule, n)


class AttributeClassifier(FeatureNet):
    """One linear layer over normalised z_sem. Its rows are the directions in which attributes lie.

    Args:
        attributes: their names, one for each row.
        dim: of z_sem.
        parts: names of what z_sem consists of, in their order, where it is more than one code.
    """

    kind = "diffae-classifier"

    def __init__(self, *, attributes: Sequence[str], dim: int = 512, parts: Sequence[str] = ("code",)) -> None:
        own = {} if list(parts) == ["code"] else {"parts": list(parts)}
        super().__init__(attributes=list(attributes), dim=dim, **own)
        self.linear = nn.Linear(dim, len(attributes))
        self.scale = CodeScale(dim)

    @property
    def attributes(self) -> list[str]:
        """Return the names of the attributes, in the order of the logits."""
        return self.config["attributes"]

    def forward(self, code: Tensor) -> Tensor:
        """Return the attributes' logits (B, K) of z_sem (B, dim), which is normalised here."""
        return self.linear(self.scale.normalize(code))
