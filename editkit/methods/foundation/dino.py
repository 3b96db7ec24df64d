"""A vision transformer in DINOv2's layout for the toy world: tokens that say what an object is and where its parts are.

It is not self-distilled as DINOv2 was (Oquab et al. 2023) but taught by what the renderer knows. The token of the whole must be
the same for an object and a second view of it, and another one for other objects (instance discrimination, Wu et al. 2018);
each patch must be like the patch of the second view that shows the same point of the object (dense contrast, Wang et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from editkit.backbones.attention import prepare_on_cpu
from editkit.backbones.dino import DinoEncoder, load_dino
from editkit.data.disturbances import disturbed
from editkit.data.items import collate
from editkit.data.scene_views import ThingViews, carried_over
from editkit.losses.contrast import alike, info_nce
from editkit.training.figures import record
from editkit.training.folder import FolderMethod, write_preprocessor

WHITE = 1.0
INSIDE = 0.5  # of a patch that must show the object to count
MOST_PATCHES = 384  # of a batch that the dense term compares


class ToyDino(FolderMethod):
    """Train a Dinov2Model from scratch on objects in two views.

    Args:
        width, layers: of the transformer; heads are 32 wide.
        patch: side of a patch in pixels.
        image_size: side of the images in pixels.
        terms: weights of the terms whole and patches.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        width: int = 160,
        layers: int = 4,
        patch: int = 8,
        image_size: int = 64,
        terms: Mapping[str, float],
        weights: str = "editkit:toy-dino",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.terms, self.weights = dict(terms), weights
        config = Dinov2Config(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            mlp_ratio=3,
            image_size=image_size,
            patch_size=patch,
            use_mask_token=False,  # nothing is masked in this training
        )
        self.dino = Dinov2Model(config)

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"dino": self.dino.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        masks, count = batch["object_masks"], len(batch["image"])
        images = torch.cat([batch["image"], batch["other"]])
        shown = disturbed(some_alone(images, torch.cat([masks[:, 0], masks[:, 1]])))
        prepare_on_cpu(self.dino)
        tokens = self.dino(shown).last_hidden_state.float()
        kinds = alike(batch["caption"])
        first, second, owners = partners(tokens[:count, 1:], tokens[count:, 1:], masks, batch["frames"])
        chosen = torch.randperm(len(owners))[:MOST_PATCHES].to(owners.device)
        owners = owners[chosen].cpu()
        twins = kinds[owners][:, owners] & (owners[:, None] != owners[None, :])
        with torch.autocast(images.device.type, enabled=False):
            losses = {
                "whole": info_nce(tokens[:count, 0], tokens[count:, 0], kinds),
                "patches": info_nce(first[chosen], second[chosen], twins),
            }
        return {name: self.terms[name] * value for name, value in losses.items()}

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": lambda data: record(self.weights, dino_figures(load_dino(self.weights), data.test_dataset()))}

    def save(self, folder: Path) -> None:
        """Write the Dinov2Model folder with its preprocessor configuration."""
        self.dino.half().save_pretrained(folder)
        self.dino.float()
        write_preprocessor(folder, "BitImageProcessor", self.dino.config.image_size)

    def dummy_batch(self) -> dict[str, Any]:
        views = ThingViews("train", 4, self.dino.config.image_size)
        return self.transfer_batch_to_device(collate([views[k] for k in range(4)]), self.device, 0)


def some_alone(images: Tensor, masks: Tensor) -> Tensor:
    """Show half of the objects alone, on white, as references may be: images (B, 3, H, W), masks (B, H, W)."""
    alone = torch.where(masks[:, None] > 0, images, WHITE)
    return torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, alone, images)


def partners(here: Tensor, there: Tensor, masks: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches of the first view with what the second view's patches say at the same points of the object.

    Args:
        here, there: patches (B, N, D) of the two views.
        masks, frames: (B, 2, H, W) and (B, 2, 4), see `ThingViews`.

    Returns:
        (P, D), (P, D), and (P,) the number of the object of each; both views show the object in all of them.
    """
    side = round(here.shape[1] ** 0.5)
    points = carried_over(centres(side, here).expand(len(here), -1, -1), frames)
    cover = F.adaptive_avg_pool2d(masks, side)
    grid = there.mT.unflatten(2, (side, side))
    sampled, covered = (
        F.grid_sample(field, points[:, :, None], align_corners=False)[..., 0] for field in (grid, cover[:, 1:].to(grid))
    )
    both = (cover[:, 0].flatten(1) >= INSIDE) & (covered[:, 0] >= INSIDE)
    owners = both.nonzero()[:, 0]
    return here[both], sampled.mT[both], owners


def centres(side: int, like: Tensor) -> Tensor:
    """Return the middles of side x side patches as (side * side, 2), (x, y) from -1 to 1, row by row."""
    line = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) * 2 / side - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=1)


@torch.no_grad()
def dino_figures(dino: DinoEncoder, data: Any) -> dict[str, Any]:
    """Return how often the nearest second view shows the same kind of object, and how far matches of patches are off.

    Args:
        data: a `ThingViews`.
    """
    batch = collate([data[k] for k in range(len(data))])
    tokens = [torch.cat([dino(part) for part in batch[name].split(64)]) for name in ("image", "other")]
    wholes = [F.normalize(one[:, 0], dim=1) for one in tokens]
    nearest = (wholes[0] @ wholes[1].T).argmax(1).tolist()
    names = batch["caption"]
    right = [names[k] == names[number] for k, number in enumerate(nearest)]
    return {"same kind nearest": round(sum(right) / len(right), 4), "patches matched": matched_patches(*tokens, batch)}


def matched_patches(here: Tensor, there: Tensor, batch: Mapping[str, Any]) -> float:
    """Return the share of an object's patches whose likest patch in the other view is at most one patch off."""
    side = round((here.shape[1] - 1) ** 0.5)
    places = centres(side, here)
    points = carried_over(places.expand(len(here), -1, -1), batch["frames"])
    likest = (F.normalize(here[:, 1:], dim=2) @ F.normalize(there[:, 1:], dim=2).mT).argmax(2)
    off = (places[likest] - points).abs().amax(2) * side / 2
    inside = F.adaptive_avg_pool2d(batch["object_masks"][:, 0], side).flatten(1) >= INSIDE
    counted = inside & (points.abs().amax(2) < 1)
    return round((off[counted] <= 1).float().mean().item(), 4)
