"""Feature networks that know how to rebuild themselves, and the embedded world's perceptual distance.

Both are saved as a folder with `config.json` and `model.safetensors`; half precision on disk, single in memory.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from editkit.backbones.assets import resolve
from editkit.errors import UserError


class FeatureNet(nn.Module):
    """A network that knows its own constructor arguments, so that a folder is enough to rebuild it."""

    kind: ClassVar[str]

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def save(self, folder: str | Path) -> Path:
        """Write config.json and model.safetensors (half precision) and return the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"kind": self.kind, **self.config}, indent=2) + "\n")
        save_file(
            {name: value.detach().half().contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors"
        )
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Rebuild a saved network in single precision, frozen and in eval mode.

        Raises:
            UserError: the folder holds something else.
        """
        folder = resolve(folder)
        config = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
        if config.pop("kind", None) != cls.kind:
            raise UserError(f"{folder} does not hold a {cls.kind} network: its config.json must say kind={cls.kind}")
        net = cls(**config)
        net.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
        return net.eval().requires_grad_(False)


Net = TypeVar("Net", bound=FeatureNet)


def holds(folder: str | Path, kind: type[FeatureNet]) -> bool:
    """Say whether a folder, or a bundled name, is of a saved network of a kind."""
    path = resolve(folder) / "config.json"
    return path.exists() and json.loads(path.read_text()).get("kind") == kind.kind


class PerceptualNet(FeatureNet):
    """A VGG-style stack: per stage two 3x3 convolutions with ReLU, then halving; its features are those before the halving.

    Args:
        channels: width of each stage.
    """

    kind = "perceptual"

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96)) -> None:
        super().__init__(channels=list(channels))
        widths = (3, *channels)
        self.stages = nn.ModuleList(_stage(width_in, width) for width_in, width in itertools.pairwise(widths))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of every stage for images (B, 3, H, W) in [-1, 1]: (B, channels[k], H / 2^k, W / 2^k)."""
        features = []
        x = images
        for k, stage in enumerate(self.stages):
            x = stage(x if k == 0 else F.avg_pool2d(x, 2))
            features.append(x)
        return features

    def compare(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
        """Return a distance per pair of feature lists, (B,): 0 for equal ones, at most 2.

        The squared difference of channel-normalised features, averaged over positions and stages (as in LPIPS, Zhang et
        al. 2018, with equal weights).
        """
        return torch.stack([(_unit(f) - _unit(g)).square().sum(1).mean((1, 2)) for f, g in zip(a, b, strict=True)]).mean(0)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a distance per pair of images in [-1, 1], (B,)."""
        return self.compare(self(a), self(b))


def load_perceptual(path: str | Path = "editkit:toy-perceptual") -> PerceptualNet:
    """Load a perceptual network from a folder or a bundled name."""
    return PerceptualNet.load(path)


def load_one_of(kinds: Sequence[type[Net]], path: str | Path) -> Net:
    """Load a network of one of several kinds: config.json says which.

    Raises:
        UserError: the folder holds something else.
    """
    folder = resolve(path)
    kind = json.loads((folder / "config.json").read_text()).get("kind") if (folder / "config.json").exists() else None
    for net in kinds:
        if net.kind == kind:
            return net.load(folder)
    wanted = " or ".join(f"kind={net.kind}" for net in kinds)
    raise UserError(f"{folder} does not hold such a network: its config.json must say {wanted}")


def _stage(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())


def _unit(features: Tensor) -> Tensor:
    # the guard sits inside the root: an all-zero pixel must have a finite gradient
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
