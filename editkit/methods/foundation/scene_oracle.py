"""Training of the oracle that evaluation reads scenes with (its network is `editkit.metrics.scene_oracle`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.autoencoder import load_autoencoder
from editkit.data.disturbances import compressed, disturbed, mirrored
from editkit.data.items import collate
from editkit.data.scene_classes import NOTHING, OF_THINGS, OF_WHOLES, UNSEEN, cell_classes, class_cost, whole_classes
from editkit.data.scene_views import VariedScenes
from editkit.data.toyworld.scenes.factors import Scene
from editkit.metrics.scene_oracle import CELLS, SceneOracle, load_scene_oracle
from editkit.training.figures import record
from editkit.training.folder import FolderMethod
from editkit.training.scene_figures import oracle_figures

NOTHING_WEIGHT = 0.3  # most cells show no object
ODD = 0.25  # share of the pictures whose colour channels are exchanged: shapes must be read whatever the colour
COARSEST = 0.25  # step of the heaviest JPEG-like rounding


class SceneReader(FolderMethod):
    """Train the scene oracle on renders, disturbed renders and, where there is one, an autoencoder's reconstructions.

    Args:
        reconstruct_with: a folder of an AutoencoderKL, or one that holds it under vae/; a third of each batch goes through it.
            None trains on renders alone.
        init_from: a folder of a scene oracle to go on from; None starts from scratch.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        reconstruct_with: str | None = None,
        init_from: str | None = None,
        weights: str = "editkit:toy-scene-oracle",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.oracle = load_scene_oracle(init_from) if init_from else SceneOracle(OF_WHOLES, OF_THINGS)
        self.autoencoder = load_autoencoder(reconstruct_with) if reconstruct_with else None
        self.weights = weights

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"oracle": self.oracle.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        scenes: list[Scene] = batch["scene"]
        images, instances = mirrored(batch["image"], batch["instances"])
        if self.autoencoder is not None:
            images = images.clone()
            images[::3] = self.autoencoder.reconstruct(images[::3]).to(images)
        images, odd = exchanged(images)
        whole, votes = self.oracle(spoiled(images))
        classes = {name: known.to(images.device).masked_fill(odd, UNSEEN) for name, known in whole_classes(scenes).items()}
        costs = [class_cost(whole[name], classes[name]) for name in whole]
        cells = cell_classes(scenes, instances, CELLS)
        cells["colour"] = cells["colour"].to(images.device).masked_fill(odd[:, None, None], UNSEEN)
        weights = torch.ones(NOTHING + 1, device=images.device)
        weights[NOTHING] = NOTHING_WEIGHT
        shape = F.cross_entropy(votes["shape"].float(), cells["shape"].to(images.device), weights)
        return {
            "whole": torch.stack(costs).mean(),
            "shape": 2 * shape,  # learned last
            "colour": class_cost(votes["colour"], cells["colour"]),
            "texture": class_cost(votes["texture"], cells["texture"]),
        }

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": self._measure}

    def _measure(self, data: Any) -> Mapping[str, Any]:
        rebuild = None if self.autoencoder is None else self.autoencoder.reconstruct
        return record(self.weights, oracle_figures(load_scene_oracle(self.weights), rebuild))

    def save(self, folder: Path) -> None:
        self.oracle.save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        scenes = VariedScenes("train", 4)
        batch = collate([scenes[k] for k in range(4)])
        return self.transfer_batch_to_device(batch, self.device, 0)


def spoiled(images: Tensor) -> Tensor:
    """Blur, add noise and shift colours, and round a third of them as JPEG does."""
    images = disturbed(images)
    coarseness = 0.02 + COARSEST * torch.rand(len(images), device=images.device).square()
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 1 / 3
    return torch.where(chosen, compressed(images, coarseness), images)


def exchanged(images: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange the colour channels of some pictures (B, 3, H, W), and say of which, (B,); their shapes are what they were."""
    odd = torch.rand(len(images), device=images.device) < ODD
    return torch.where(odd[:, None, None, None], images[:, torch.randperm(3)], images), odd
