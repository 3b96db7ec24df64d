"""The oracle of scenes: a small network that reads a picture's place, time, season, style and count, and what stands where.

It names what it sees in each cell of a grid and never sees a mask: a region that one asks about only says whose votes count,
so that its outline gives nothing away. Evaluation only, never training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.errors import UsageError, suggestion
from editkit.metrics.folder import read, write
from editkit.metrics.oracle import Residual, norm

SIDE = 64  # pixels; other sizes are resized
CELLS = 16  # per side of the grid of votes
GRID = 4  # per side of the coarse map that keeps positions for the whole picture's factors
THERE = 0.5  # chance from which on an object counts as present


@dataclass(frozen=True)
class Reading:
    """What is read of one factor: classes, indices into `values`, and their probabilities, one for each that was asked for."""

    values: tuple[str, ...]
    classes: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Objects:
    """What stands in regions of pictures.

    Attributes:
        presence: (B, N) chance that an object does, 0 to 1.
        aspects: its shape, colour and texture, (B, N) each; they mean nothing where `presence` is low.
    """

    presence: Tensor
    aspects: dict[str, Reading]


@dataclass(frozen=True)
class Found:
    """Where objects like that stand.

    Attributes:
        masks: (B, 1, H, W), 1 = there, in whole cells.
        confidence: (B,) chance of the surest place, 0 to 1.
    """

    masks: Tensor
    confidence: Tensor


class SceneOracle(nn.Module):
    """Read scenes of 64 x 64 pixels.

    Args:
        whole: the values of each factor of the whole picture, in class order.
        things: the values of shape, colour and texture, in class order.
        widths: channels at 32, 16 and 8 pixels.
        features: width of the penultimate layer of the whole picture's factors.
    """

    def __init__(
        self,
        whole: Mapping[str, Sequence[str]],
        things: Mapping[str, Sequence[str]],
        widths: Sequence[int] = (40, 64, 96),
        features: int = 128,
    ):
        super().__init__()
        self.whole = {name: tuple(values) for name, values in whole.items()}
        self.things = {name: tuple(values) for name, values in things.items()}
        self.config = {"widths": list(widths), "features": features}
        fine, middle, coarse = widths
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, fine, 3, padding=1), Residual(fine, fine))
        self.middle = nn.Sequential(Residual(fine, middle, stride=2), Residual(middle, middle))
        self.coarse = nn.Sequential(Residual(middle, coarse, stride=2), Residual(coarse, coarse))
        self.ends = nn.Sequential(norm(coarse), nn.SiLU())
        self.narrow = nn.Conv2d(coarse, coarse // 4, 1)
        self.penultimate = nn.Linear(coarse + coarse // 4 * GRID * GRID, features)
        self.whole_head = nn.Linear(features, sum(len(values) for values in self.whole.values()))
        self.joined = nn.Sequential(nn.Conv2d(middle + coarse, middle, 1), Residual(middle, middle), norm(middle), nn.SiLU())
        # one class more among the shapes: nothing
        self.votes = nn.Conv2d(middle, 1 + sum(len(values) for values in self.things.values()), 1)

    def logits(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return class logits (B, K) per factor of the whole picture and (B, K, 16, 16) per aspect of what stands there.

        The shapes have one class more, the last one: nothing.
        """
        shown = self._sized(images)
        middle = self.middle(self.fine(shown))
        coarse = self.ends(self.coarse(middle))
        grid = F.adaptive_avg_pool2d(self.narrow(coarse), GRID).flatten(1)
        features = F.silu(self.penultimate(torch.cat([coarse.mean((2, 3)), grid], dim=1)))
        whole = self.whole_head(features).split([len(values) for values in self.whole.values()], dim=1)
        wide = F.interpolate(coarse, middle.shape[-2:], mode="bilinear", align_corners=False)
        sizes = [len(values) + (name == "shape") for name, values in self.things.items()]
        votes = self.votes(self.joined(torch.cat([middle, wide], dim=1))).split(sizes, dim=1)
        return dict(zip(self.whole, whole, strict=True)), dict(zip(self.things, votes, strict=True))

    forward = logits

    @torch.no_grad()
    def read_scene(self, images: Tensor) -> dict[str, Reading]:
        """Return a reading (B,) of each factor of whole pictures (B, 3, H, W) in [-1, 1]."""
        found = {name: part.float().softmax(1).max(1) for name, part in self.logits(images)[0].items()}
        return {name: Reading(self.whole[name], best.indices, best.values) for name, best in found.items()}

    @torch.no_grad()
    def read_objects(self, images: Tensor, masks: Tensor) -> Objects:
        """Return what stands in regions of pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            masks: (B, N, H, W), 1 = the region; where it is empty, the presence is 0.
        """
        chances = self._chances(images)
        weights = _cells(masks.to(images))
        size = weights.sum((2, 3)).clamp_min(1e-6)
        there = chances["shape"].sum(1)
        presence = torch.einsum("bnhw,bhw->bn", weights, there) / size
        aspects = {}
        for name, values in self.things.items():
            seen = chances[name] if name == "shape" else chances[name] * there[:, None]
            share = torch.einsum("bnhw,bkhw->bnk", weights, seen)
            best = (share / share.sum(2, keepdim=True).clamp_min(1e-6)).max(2)
            aspects[name] = Reading(values, best.indices, best.values)
        return Objects(presence, aspects)

    @torch.no_grad()
    def find(self, images: Tensor, shape: str | None = None, colour: str | None = None) -> Found:
        """Say whether and where pictures (B, 3, H, W) in [-1, 1] show an object of a shape, a colour, or both; any without.

        The confidence is that of the surest 2 x 2 cells, so a single odd cell finds nothing.

        Raises:
            UsageError: an unknown shape or colour.
        """
        chances = self._chances(images)
        like = chances["shape"].sum(1) if shape is None else chances["shape"][:, self._class("shape", shape)]
        if colour is not None:
            like = like * chances["colour"][:, self._class("colour", colour)]
        masks = F.interpolate((like[:, None] > THERE).float(), images.shape[-2:], mode="nearest")
        return Found(masks, F.avg_pool2d(like[:, None], 2, 1).amax((1, 2, 3)))

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors (fp16) and config.json."""
        write(self, folder, "scene oracle", {**self.config, "whole": self.whole, "things": self.things})

    def _sized(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (SIDE, SIDE):
            return images
        return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)

    def _chances(self, images: Tensor) -> dict[str, Tensor]:
        """Return the probabilities (B, K, 16, 16) per aspect; the shapes' add up to less than 1 where there may be nothing."""
        chances = {name: votes.float().softmax(1) for name, votes in self.logits(images)[1].items()}
        return {**chances, "shape": chances["shape"][:, :-1]}

    def _class(self, aspect: str, value: str) -> int:
        if value not in self.things[aspect]:
            known = self.things[aspect]
            raise UsageError(f"there is no {aspect} {value!r}.{suggestion(value, known)} There are: {', '.join(known)}")
        return self.things[aspect].index(value)


def load_scene_oracle(path: str | Path = "editkit:toy-scene-oracle") -> SceneOracle:
    """Load a scene oracle in evaluation mode, float32, from a folder that `SceneOracle.save` wrote.

    Raises:
        UserError: no such folder, or it is no scene oracle.
    """
    make = lambda config: SceneOracle(config["whole"], config["things"], config["widths"], config["features"])  # noqa: E731
    return read(path, "scene oracle", make)


def _cells(masks: Tensor) -> Tensor:
    """Return how much each cell counts for regions (B, N, H, W): (B, N, 16, 16); edges only where there is nothing else."""
    cover = F.adaptive_avg_pool2d(masks.float(), CELLS)
    inner = cover * (cover >= 0.5)
    return torch.where(inner.sum((2, 3), keepdim=True) > 0, inner, cover)
