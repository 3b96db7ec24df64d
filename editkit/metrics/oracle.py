"""The oracle: a small network that reads the factors of a toy face back from its picture. Evaluation only, never training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.metrics.folder import read, write

SIDE = 64  # pixels; other sizes are resized
GRID = 4  # cells per side of the coarse map that keeps positions
SEEN = {"age": (42.0, 72.0)}  # wrinkles start at 42 and are complete at 72: outside, years cannot be read from a picture
TOLERANCE = 0.1  # of a factor's range


class Oracle(nn.Module):
    """Read all factors of 64x64 toy faces at once, e.g. `Oracle(faces.CATEGORICAL, faces.CONTINUOUS)`.

    Args:
        categorical: the values of each categorical factor, in class order.
        continuous: the range (low, high) of each continuous factor. What a picture can tell may be less (`SEEN`): targets
            and readings are clamped to that part, so a reading of 42 years says "42 or younger".
        widths: channels at 32, 16 and 8 pixels.
        features: width of the penultimate layer.
    """

    def __init__(
        self,
        categorical: Mapping[str, Sequence[Any]],
        continuous: Mapping[str, tuple[float, float]],
        widths: Sequence[int] = (40, 64, 96),
        features: int = 160,
    ):
        super().__init__()
        self.categorical = {name: tuple(values) for name, values in categorical.items()}
        self.continuous = {name: (float(low), float(high)) for name, (low, high) in continuous.items()}
        self.seen = {name: SEEN.get(name, span) for name, span in self.continuous.items()}
        self.config = {"widths": list(widths), "features": features}
        fine, middle, coarse = widths
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(2),  # keeps every pixel, at a quarter of the cost of full-resolution blocks
            nn.Conv2d(12, fine, 3, padding=1),
            Residual(fine, fine),
            Residual(fine, middle, stride=2),
            Residual(middle, coarse, stride=2),
            Residual(coarse, coarse),
            norm(coarse),
            nn.SiLU(),
        )
        self.narrow = nn.Conv2d(coarse, coarse // 2, 1)
        self.penultimate = nn.Linear(coarse + coarse // 2 * GRID * GRID, features)
        self.sizes = [len(values) for values in self.categorical.values()] + [1] * len(self.continuous)
        self.heads = nn.Linear(features, sum(self.sizes))

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features (B, D) of images (B, 3, H, W) in [-1, 1]."""
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        maps = self.trunk(images)
        grid = F.adaptive_avg_pool2d(self.narrow(maps), GRID).flatten(1)
        return F.silu(self.penultimate(torch.cat([maps.mean((2, 3)), grid], dim=1)))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Return class logits (B, K) per categorical factor and values (B,) per continuous one, 0 to 1 over its seen range."""
        parts = self.heads(self.features(images)).split(self.sizes, dim=1)
        names = [*self.categorical, *self.continuous]
        return {name: part if name in self.categorical else part[:, 0] for name, part in zip(names, parts, strict=True)}

    forward = logits

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """Return the class index or the value in its own unit (clamped to the seen range) per factor, (B,) each."""
        readings = {}
        for name, output in self.logits(images).items():
            if name in self.categorical:
                readings[name] = output.argmax(1)
            else:
                low, high = self.seen[name]
                readings[name] = low + (high - low) * output.float().clamp(0, 1)
        return readings

    @torch.no_grad()
    def probability(self, images: Tensor, factor: str, value: Any) -> Tensor:
        """Return the probability (B,) that the categorical `factor` has `value`."""
        return self.logits(images)[factor].float().softmax(1)[:, self.categorical[factor].index(value)]

    def targets(self, faces: Iterable[Any]) -> dict[str, Tensor]:
        """Return what `logits` should say of these faces: class indices, and values from 0 to 1 over the seen range."""
        faces = list(faces)
        found = {}
        for name, values in self.categorical.items():
            found[name] = torch.tensor([values.index(getattr(face, name)) for face in faces])
        for name, (low, high) in self.seen.items():
            found[name] = torch.tensor([(getattr(face, name) - low) / (high - low) for face in faces]).float().clamp(0, 1)
        return found

    def truth(self, faces: Iterable[Any]) -> dict[str, Tensor]:
        """Return what `read` should say of these faces: class indices, and values in their own units within the seen range."""
        found = self.targets(faces)
        for name, (low, high) in self.seen.items():
            found[name] = low + (high - low) * found[name]
        return found

    def loss(self, logits: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the mean cross entropy over categorical and the mean smooth L1 over continuous factors."""
        classes = [F.cross_entropy(logits[name], targets[name]) for name in self.categorical]
        values = [F.smooth_l1_loss(logits[name], targets[name], beta=0.05) for name in self.continuous]
        return torch.stack(classes).mean() + 4.0 * torch.stack(values).mean()

    def agreement(self, readings: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return per factor (B,) bool whether the reading is right: equal, or within 10 % of the factor's range."""
        equal = {name: readings[name] == truth[name] for name in self.categorical}
        near = {name: (readings[name] - truth[name]).abs() <= self.tolerance(name) for name in self.continuous}
        return equal | near

    def tolerance(self, factor: str) -> float:
        """Return how far a reading of the continuous `factor` may be off, in its own unit."""
        low, high = self.continuous[factor]
        return TOLERANCE * (high - low)

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors (fp16) and config.json."""
        write(self, folder, "oracle", {**self.config, "categorical": self.categorical, "continuous": self.continuous})


def load_oracle(path: str | Path = "editkit:toy-oracle") -> Oracle:
    """Load an oracle in evaluation mode, float32, from a folder that `Oracle.save` wrote.

    Raises:
        UserError: no such folder, or it is no oracle.
    """
    make = lambda config: Oracle(config["categorical"], config["continuous"], config["widths"], config["features"])  # noqa: E731
    return read(path, "oracle", make)


def norm(channels: int) -> nn.GroupNorm:
    """Return the normalisation of all oracles."""
    return nn.GroupNorm(8, channels)


class Residual(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut; the first may halve the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            norm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, outputs, 3, stride, padding=1),
            norm(outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)
