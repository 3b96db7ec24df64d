"""Training of the oracle that evaluation reads factors with (its network is `editkit.metrics.oracle`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.pixel import load_pixel
from editkit.data.disturbances import disturbed
from editkit.data.pairs import face_named
from editkit.data.toyworld import animals, faces, styled
from editkit.engine.invert import DDIM, replay
from editkit.engine.sample import sample
from editkit.errors import UsageError, suggestion
from editkit.metrics.oracle import Oracle, load_oracle
from editkit.training.figures import KNOWN, Known, oracle_figures, record
from editkit.training.folder import FolderMethod


@dataclass(frozen=True)
class Readable:
    """What of the toy world an oracle reads.

    Attributes:
        categorical, continuous: its factors.
        named: from an item's key to what it shows.
        known: what the figures are measured on.
    """

    categorical: Mapping[str, Sequence[Any]]
    continuous: Mapping[str, tuple[float, float]]
    named: Callable[[str], Any]
    known: Known


READABLE: Mapping[str, Readable] = {
    "faces": Readable(faces.CATEGORICAL, faces.CONTINUOUS, face_named, KNOWN["faces"]),
    "animals": Readable(animals.CATEGORICAL, animals.CONTINUOUS, animals.animal_named, KNOWN["animals"]),
    "styles": Readable(styled.CATEGORICAL, styled.CONTINUOUS, styled.styled_named, KNOWN["styles"]),
}


class FactorReader(FolderMethod):
    """Train the oracle on renders, disturbed renders and a diffusion model's reconstructions of renders.

    Args:
        domain: what it reads, "faces", "animals" or "styles"; the data's.
        backbone: the model whose reconstructions are mixed in; None trains on renders alone.
        reconstructions: how many training images to reconstruct once, before training.
        steps: DDIM steps of inversion and reconstruction.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        domain: str = "faces",
        backbone: str | None = None,
        reconstructions: int = 0,
        steps: int = 25,
        weights: str = "editkit:toy-oracle",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if domain not in READABLE:
            raise UsageError(
                f"method.domain={domain} is unknown.{suggestion(domain, READABLE)} Choose from {', '.join(READABLE)}"
            )
        self.world = READABLE[domain]
        self.oracle = Oracle(self.world.categorical, self.world.continuous)
        self.backbone, self.reconstructions, self.steps, self.weights = backbone, reconstructions, steps, weights
        self.rebuilt: list[tuple[Tensor, Any]] = []

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"oracle": self.oracle.parameters()}

    @torch.no_grad()
    def precompute(self, dataset: Any) -> None:
        if self.backbone is None:
            return
        denoiser = load_pixel(self.backbone).to(self.device)
        levels = denoiser.schedule.levels(self.steps)
        for start in range(0, self.reconstructions, 32):
            items = [dataset[k] for k in range(start, min(start + 32, self.reconstructions))]
            x0 = torch.stack([item["image"] for item in items]).to(self.device)
            images = sample(denoiser, **replay(DDIM(query="source").invert(denoiser, x0, levels))).clamp(-1, 1)
            self.rebuilt += [
                (image.half().cpu(), self.world.named(item["key"])) for image, item in zip(images, items, strict=True)
            ]

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, shown = disturbed(batch["image"]), [self.world.named(key) for key in batch["key"]]
        if self.rebuilt and len(shown) >= 3:
            chosen = [self.rebuilt[k] for k in torch.randint(len(self.rebuilt), (len(shown) // 3,)).tolist()]
            images = torch.cat([images, torch.stack([image.to(images) for image, _ in chosen])])
            shown += [thing for _, thing in chosen]
        targets = {name: value.to(images.device) for name, value in self.oracle.targets(shown).items()}
        logits = {name: value.float() for name, value in self.oracle(images).items()}
        return {"factors": self.oracle.loss(logits, targets)}

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": self._measure}

    def _measure(self, data: Any) -> Mapping[str, Any]:
        denoiser = load_pixel(self.backbone) if self.backbone is not None else None
        return record(self.weights, oracle_figures(load_oracle(self.weights), denoiser, self.world.known))

    def save(self, folder: Path) -> None:
        self.oracle.save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        keys = [self.world.known.key(k) for k in range(4)]
        return {"image": torch.zeros(4, 3, 64, 64, device=self.device), "key": keys}
