"""A stage before a diffusion autoencoder's first, which is ours: codes say what a picture shows before any decoder reads them.

A diffusion autoencoder that starts with random codes learns to ignore them, and needs millions of pictures to learn otherwise:
decoder and encoder wait for each other. Where there is no time for that, the encoder learns first, beside a small network that
draws pictures from codes in one pass, and its codes are aligned with CLIP's (in the manner of REPA, Yu et al., arXiv 2410.06940).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.clip import load_clip
from editkit.backbones.diffae import StartedEncoder, whitening
from editkit.errors import UsageError
from editkit.training.folder import FolderMethod, network_arguments
from editkit.training.method import OptimizerFactory, SchedulerFactory

WHITENED = 1024  # pictures whose codes the whitening is measured on
RIDGE = 3e-3  # of the mean variance: directions of less say nothing and are not blown up
CLIP_RIDGE = 0.1  # the same of CLIP's embeddings, of whose directions more are noise
DRAWN_FROM = 8  # side of the drawing's first map


class EncoderStart(FolderMethod):
    """Train a semantic encoder as an ordinary autoencoder's; its export is a folder that the autoencoder's `encoder_from` takes.

    The codes of the export are white: of mean zero, and uncorrelated with a deviation of one, as far as they say anything.

    Args:
        network: arguments of `started`.
        clip: folder of the CLIP whose image embeddings the codes are to predict.
        edges: weight of the error of neighbouring pixels' differences, which small parts show in.
        align: weight of one minus the cosine with CLIP's embeddings, made white.

    Raises:
        UsageError: a negative weight.
    """

    started: type[StartedEncoder] = StartedEncoder

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        clip: str = "editkit:toy-clip",
        edges: float = 1.0,
        align: float = 0.5,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        for name, weight in {"edges": edges, "align": align}.items():
            if weight < 0:
                raise UsageError(f"method.{name}={weight} is negative; give a weight of 0 or more")
        self.start = self.started(**network_arguments(network)).train().requires_grad_(True)
        self.clip_path, self.edges, self.align = clip, edges, align
        self.scaled = nn.BatchNorm1d(self.start.width, affine=False)
        self.drawing = self.reader()
        self.embedding: nn.Module = nn.Identity()  # made once CLIP is there

    def prepare_training(self) -> None:
        """Load CLIP, and size what predicts its embeddings."""
        self.clip = load_clip(self.clip_path)
        self.embedding = nn.Linear(self.start.width, self.clip.dim)
        self.register_buffer("clip_mean", torch.zeros(self.clip.dim), persistent=False)
        self.register_buffer("clip_white", torch.eye(self.clip.dim), persistent=False)

    def reader(self) -> nn.Module:
        """Return the network that draws pictures from codes in one pass."""
        return drawing(self.start.config["sample_size"], self.start.width)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the encoder and what reads its codes, one group."""
        return {"encoder": [*self.start.parameters(), *self.drawing.parameters(), *self.embedding.parameters()]}

    @torch.no_grad()
    def precompute(self, dataset: Any) -> None:
        """Keep the pictures that codes are whitened on, and what makes their embeddings white."""
        count = min(WHITENED, len(dataset))
        self.pictures = torch.stack([dataset[index]["image"] for index in range(count)])
        embeddings = torch.cat([self.clip.image(part.to(self.device)) for part in self.pictures.split(64)])
        self.clip_mean.copy_(embeddings.mean(0))
        self.clip_white.copy_(whitening(embeddings.double(), CLIP_RIDGE))

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the errors (B,) of pixels and edges, and of the directions of white embeddings.

        White ones because the raw ones are mostly of colours: a mouth would count for next to nothing.
        """
        images = batch["image"]
        codes = self.scaled(self.start(images))
        with torch.no_grad():
            wanted = (self.clip.image(images) - self.clip_mean) @ self.clip_white
        cosine = F.cosine_similarity(self.embedding(codes), wanted, dim=1)
        drawn = self.drawing(codes)
        edges = sum(absolute(a, b) for a, b in zip(differences(drawn), differences(images), strict=True))
        return {"pixels": absolute(drawn, images), "edges": self.edges * edges, "align": self.align * (1 - cosine)}

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors of the encoder with white codes."""
        copy.deepcopy(self.start).eval().whitened(self.pictures, RIDGE).save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images."""
        side = self.start.config["sample_size"]
        return {"image": torch.rand(2, 3, side, side, device=self.device) * 2 - 1, "key": ["dummy/0", "dummy/1"]}


class LevelDrawing(nn.Module):
    """A small network from a code of each side, (B, levels code), to pictures (B, 3, size, size).

    The most abstract code becomes the first map; each other one scales the channels of the maps of its own side, as codes of
    levels do in the decoder.

    Args:
        size: of the pictures, the side of the last code.
        code: numbers of each code.
        levels: how many codes, each of twice the side of that before it.
    """

    def __init__(self, size: int, code: int, levels: int, width: int = 64, groups: int = 8) -> None:
        super().__init__()
        side = size >> (levels - 1)
        widths = [width, *(max(32, width - 16 * n) for n in range(levels - 1))]
        self.first = nn.Sequential(nn.Linear(code, width * side**2), nn.Unflatten(1, (width, side, side)))
        self.stages = nn.ModuleList(DrawnLevel(*pair, code, groups) for pair in itertools.pairwise(widths))
        self.out = nn.Sequential(nn.GroupNorm(groups, widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, codes: Tensor) -> Tensor:
        first, *others = codes.chunk(len(self.stages) + 1, 1)
        hidden = self.first(first)
        for stage, code in zip(self.stages, others, strict=True):
            hidden = stage(hidden, code)
        return self.out(hidden)


class DrawnLevel(nn.Module):
    """Twice the side, and two convolutions whose channels a code scales."""

    def __init__(self, before: int, width: int, code: int, groups: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, one) for one in (before, width))
        self.convolutions = nn.ModuleList(nn.Conv2d(one, width, 3, padding=1) for one in (before, width))
        self.scales = nn.ModuleList(nn.Linear(code, one) for one in (before, width))

    def forward(self, hidden: Tensor, code: Tensor) -> Tensor:
        hidden = F.interpolate(hidden, scale_factor=2)
        for norm, scale, convolution in zip(self.norms, self.scales, self.convolutions, strict=True):
            hidden = convolution(F.silu(norm(hidden) * (1 + scale(code)[:, :, None, None])))
        return hidden


def drawing(size: int, code: int, width: int = 64, groups: int = 8) -> nn.Sequential:
    """Return a small network from codes (B, code) to pictures (B, 3, size, size)."""
    layers: list[nn.Module] = [nn.Linear(code, width * DRAWN_FROM**2), nn.Unflatten(1, (width, DRAWN_FROM, DRAWN_FROM))]
    side = DRAWN_FROM
    while side < size:
        after = max(24, width - 16) if side > DRAWN_FROM else width
        layers += [nn.GroupNorm(groups, width), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(width, after, 3, padding=1)]
        side, width = 2 * side, after
    return nn.Sequential(*layers, nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean absolute difference of each sample, (B,)."""
    return (a - b).abs().flatten(1).mean(1)


def differences(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of pixels side by side, (B, C, H, W - 1), and below each other, (B, C, H - 1, W)."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]
