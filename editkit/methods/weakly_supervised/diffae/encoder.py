"""A stage before the first, which is ours: an encoder whose codes say what a picture shows before any decoder reads them.

A diffusion autoencoder that starts with random codes learns to ignore them, and needs millions of pictures to learn otherwise:
decoder and encoder wait for each other. Where there is no time for that, the encoder learns first, beside a small network that
draws pictures from codes in one pass, and its codes are aligned with CLIP's (in the manner of REPA, Yu et al., arXiv 2410.06940).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.clip import load_clip
from editkit.backbones.diffae import StartedEncoder
from editkit.errors import UsageError
from editkit.training.folder import FolderMethod, network_arguments
from editkit.training.method import OptimizerFactory, SchedulerFactory

WHITENED = 1024  # pictures whose codes the whitening is measured on
RIDGE = 3e-3  # of the mean variance: directions of less say nothing and are not blown up
DRAWN_FROM = 8  # side of the drawing's first map


class EncoderStart(FolderMethod):
    """Train a semantic encoder as an ordinary autoencoder's; its export is a folder that `Autoencoder.encoder_from` takes.

    The codes of the export are white: of mean zero, and uncorrelated with a deviation of one, as far as they say anything.

    Args:
        network: arguments of `StartedEncoder`.
        clip: folder of the CLIP whose image embeddings the codes are to predict.
        edges: weight of the error of neighbouring pixels' differences, which small parts show in.
        align: weight of one minus the cosine with CLIP's embeddings.

    Raises:
        UsageError: a negative weight.
    """

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
        self.start = StartedEncoder(**network_arguments(network)).train().requires_grad_(True)
        self.clip_path, self.edges, self.align = clip, edges, align
        size, code = self.start.config["sample_size"], self.start.config["code"]
        self.scaled = nn.BatchNorm1d(code, affine=False)
        self.drawing = drawing(size, code)
        self.embedding: nn.Module = nn.Identity()  # made once CLIP is there

    def prepare_training(self) -> None:
        """Load CLIP, and size what predicts its embeddings."""
        self.clip = load_clip(self.clip_path)
        self.embedding = nn.Linear(self.start.config["code"], self.clip.dim)
        self.register_buffer("clip_mean", torch.zeros(self.clip.dim), persistent=False)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the encoder and what reads its codes, one group."""
        return {"encoder": [*self.start.parameters(), *self.drawing.parameters(), *self.embedding.parameters()]}

    @torch.no_grad()
    def precompute(self, dataset: Any) -> None:
        """Keep the pictures that codes are whitened on, and the mean of their embeddings."""
        count = min(WHITENED, len(dataset))
        self.pictures = torch.stack([dataset[index]["image"] for index in range(count)])
        self.clip_mean.copy_(torch.cat([self.clip.image(part.to(self.device)) for part in self.pictures.split(64)]).mean(0))

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the errors (B,) of pixels and edges, and of the embeddings' directions around their mean."""
        images = batch["image"]
        codes = self.scaled(self.start(images))
        with torch.no_grad():
            wanted = self.clip.image(images) - self.clip_mean
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
