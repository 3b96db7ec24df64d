"""Training of the oracle that evaluation finds the parts of faces with (its network is `editkit.metrics.part_oracle`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.data.disturbances import disturbed, mirrored
from editkit.data.toyworld.faces import PARTS, render
from editkit.data.toyworld.world import face_at
from editkit.metrics.part_oracle import PartOracle, load_part_oracle, overlap
from editkit.training.figures import pictures, record
from editkit.training.folder import FolderMethod

TESTED = 256  # faces that the figures are of


class PartReader(FolderMethod):
    """Train the part oracle on renders and disturbed renders; items hold image and labels.

    Args:
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(self, *, weights: str = "editkit:toy-part-oracle", optimizer: Any = None, scheduler: Any = None):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.oracle, self.weights = PartOracle(PARTS), weights

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"oracle": self.oracle.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, labels = mirrored(batch["image"], batch["labels"].to(batch["image"].device))
        return {"parts": F.cross_entropy(self.oracle(disturbed(images)).float(), labels)}

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": self._measure}

    def _measure(self, data: Any) -> Mapping[str, Any]:
        return record(self.weights, part_figures(load_part_oracle(self.weights)))

    def save(self, folder: Path) -> None:
        self.oracle.save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        shape = (2, 64, 64)
        return {"image": torch.zeros(2, 3, *shape[1:], device=self.device), "labels": torch.zeros(shape, dtype=torch.long)}


def part_figures(oracle: PartOracle) -> dict[str, float]:
    """Return the share of pixels of test faces that are named rightly, and each part's mean intersection over union."""
    faces = [face_at("test", k) for k in range(TESTED)]
    known = torch.stack([torch.tensor(render(face, 64, labels=True)[1]).long() for face in faces])  # type: ignore[arg-type]
    found = torch.cat([oracle.read(part) for part in pictures(faces).split(64)])
    figures = {"pixels": (found == known).float().mean().item()}
    figures |= {f"overlap {name}": overlap(found, known, [k]).nanmean().item() for k, name in enumerate(oracle.parts)}
    return {name: round(value, 4) for name, value in figures.items()}
