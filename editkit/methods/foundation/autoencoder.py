"""An autoencoder in diffusers' layout: what the latent models of the toy world diffuse.

AutoencoderKL with three levels, so that 64 x 64 pixels become 16 x 16 latents of 4 channels (Rombach et al. 2022, section
3.1, f = 4). Trained with L1 and squared errors, an L1 of the differences between neighbouring pixels, which keeps edges
sharp in place of their adversary, and a light Kullback-Leibler term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from editkit.backbones.autoencoder import Autoencoder, load_autoencoder
from editkit.backbones.saving import save_part
from editkit.data.captioned import CaptionedDataset
from editkit.training.figures import record
from editkit.training.folder import FolderMethod, network_arguments
from editkit.training.scene_figures import autoencoder_figures

GRID = 8  # pictures of a sample grid


class AutoencoderTraining(FolderMethod):
    """Train an AutoencoderKL on images alone.

    Args:
        network: arguments of diffusers' AutoencoderKL.
        crop: side of the random crops that training sees; None takes whole pictures.
        terms: weights of the terms l1, l2 (squared error), edges, kl (the last per latent number, in nats).
        size: side of the pictures, for the sample grid.
        keep_latents: train the decoder alone, so that models of these latents stay right.
        init_from: an autoencoder folder whose weights to start from; None starts from scratch.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        terms: Mapping[str, float],
        crop: int | None = None,
        size: int = 64,
        keep_latents: bool = False,
        init_from: str | None = None,
        weights: str = "editkit:toy-latent",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.vae = AutoencoderKL(**network_arguments(network))
        if init_from is not None:
            start = load_autoencoder(init_from)
            self.vae.load_state_dict(start.vae.state_dict())
            self.vae.register_to_config(scaling_factor=start.scaling_factor)
        self.terms, self.crop, self.size, self.weights = dict(terms), crop, size, weights
        self.keep_latents = keep_latents

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        parts = (self.vae.decoder, self.vae.post_quant_conv) if self.keep_latents else (self.vae,)
        return {"vae": [parameter for part in parts for parameter in part.parameters()]}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the weighted terms per image, (B,) each."""
        images = batch["image"] if self.crop is None else _cropped(batch["image"], self.crop)
        posterior = self.vae.encode(images).latent_dist
        rebuilt = self.vae.decode(posterior.sample()).sample.float()
        terms = {
            "l1": (rebuilt - images).abs().mean((1, 2, 3)),
            "l2": (rebuilt - images).square().mean((1, 2, 3)),
            "edges": sum((_steps(rebuilt, axis) - _steps(images, axis)).abs().mean((1, 2, 3)) for axis in (2, 3)),
            "kl": posterior.kl().float() / posterior.mean[0].numel(),
        }
        return {name: self.terms[name] * value for name, value in terms.items() if self.terms[name]}

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Return validation pictures above their reconstructions, (2, 8, 3, H, W)."""
        images = _pictures("validation", GRID, self.size).to(self.device)
        rebuilt = Autoencoder(self.vae).reconstruct(images)
        self.freeze_rest()  # the backbone froze the network that is being trained
        self.vae.train()
        return torch.stack([images, rebuilt])

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": lambda data: record(self.weights, autoencoder_figures(load_autoencoder(self.weights)))}

    def save(self, folder: Path) -> None:
        """Write the folder of an AutoencoderKL, in half precision, with the scale that gives latents a deviation of 1.

        Where the latents are kept, so is their scale.
        """
        if not self.keep_latents:
            self.vae.register_to_config(scaling_factor=round(1 / self._deviation(), 5))
        weights = {name: tensor.clone() for name, tensor in self.vae.state_dict().items()}
        save_part(self.vae.half(), folder)
        self.vae.float().load_state_dict(weights)

    def dummy_batch(self) -> dict[str, Any]:
        return {"image": torch.zeros(2, 3, self.size, self.size, device=self.device), "key": ["a", "b"]}

    @torch.no_grad()
    def _deviation(self) -> float:
        return float(self.vae.encode(_pictures("validation", 64, self.size).to(self.device)).latent_dist.mean.std())


def _pictures(split: str, count: int, size: int) -> Tensor:
    dataset = CaptionedDataset(split, count, size)
    return torch.stack([dataset[k]["image"] for k in range(count)])


def _cropped(images: Tensor, side: int) -> Tensor:
    """Return a random square of each image, (B, 3, side, side)."""
    tops, lefts = (torch.randint(length - side + 1, (len(images),)).tolist() for length in images.shape[-2:])
    return torch.stack(
        [image[:, top : top + side, left : left + side] for image, top, left in zip(images, tops, lefts, strict=True)]
    )


def _steps(images: Tensor, axis: int) -> Tensor:
    return images.diff(dim=axis)
