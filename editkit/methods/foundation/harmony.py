"""Training of the network that evaluation tells pasted objects with (it is `editkit.metrics.harmony`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.autoencoder import load_autoencoder
from editkit.data.disturbances import disturbed, mirrored
from editkit.data.items import collate
from editkit.data.pasted import PastedScenes
from editkit.metrics.harmony import HarmonyNet, load_harmony
from editkit.training.figures import record
from editkit.training.folder import FolderMethod
from editkit.training.harmony_figures import harmony_figures


class SeamReader(FolderMethod):
    """Train a network to tell true renderings from pasted pictures; items as of `PastedScenes`.

    Both kinds are blurred, noised and shifted in colour alike, so that it judges how things fit and not how clean they are.

    Args:
        widths: see `HarmonyNet`.
        reconstruct_with: a folder of an AutoencoderKL, or one that holds it under vae/; a third of each batch goes through it,
            as the results of latent models have. None trains without.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 48, 64),
        reconstruct_with: str | None = None,
        weights: str = "editkit:toy-harmony",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.net = HarmonyNet(list(widths))
        self.autoencoder = load_autoencoder(reconstruct_with) if reconstruct_with else None
        self.weights = weights

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"net": self.net.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the cross entropy, (B,)."""
        images, masks = mirrored(batch["image"], batch["mask"])
        if self.autoencoder is not None:
            images[::3] = self.autoencoder.reconstruct(images[::3]).to(images)
        logits = self.net(disturbed(images), masks)
        return {
            "seam": F.binary_cross_entropy_with_logits(logits.float(), batch["rendered"].to(logits).float(), reduction="none")
        }

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": self._measure}

    def _measure(self, data: Any) -> Mapping[str, Any]:
        return record(self.weights, harmony_figures(load_harmony(self.weights)))

    def save(self, folder: Path) -> None:
        self.net.save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        scenes = PastedScenes("train", 4)
        return self.transfer_batch_to_device(collate([scenes[k] for k in range(4)]), self.device, 0)
