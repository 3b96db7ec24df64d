"""Autoencoders in diffusers' layout (AutoencoderKL): pixels to latents and back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from editkit.backbones.assets import resolve
from editkit.errors import UserError


class Autoencoder(torch.nn.Module):
    """An AutoencoderKL, frozen and in eval mode; all latents here are as the network gives them, unscaled."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae
        self.requires_grad_(False)
        self.eval()

    @property
    def scaling_factor(self) -> float:
        """Return what latents are multiplied with before they are diffused."""
        return float(self.vae.config.scaling_factor)

    @property
    def factor(self) -> int:
        """Return how many times smaller than the picture a side of the latents is."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, (B, C, h, w) each, of images (B, 3, H, W) in [-1, 1]."""
        found = self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist
        return found.mean.float(), found.logvar.float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, 3, H, W) of unscaled latents (B, C, h, w), not clamped."""
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return images through the posterior's mean and back, clamped to [-1, 1]."""
        return self.decode(self.posterior(images)[0]).clamp(-1, 1)

    def digest(self) -> str:
        """Return a hash of the weights, 16 hex digits."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.vae.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()[:16]


def load_autoencoder(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | None = None) -> Autoencoder:
    """Load an AutoencoderKL folder, or the vae/ of a pipeline's; "editkit:NAME" for a bundled one.

    Args:
        device: where to put it, such as "cuda"; None = the processor.

    Raises:
        UserError: no such folder, or not an AutoencoderKL with safetensors weights.
    """
    folder = resolve(path)
    home = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        vae = AutoencoderKL.from_pretrained(str(home), torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{home} does not hold an AutoencoderKL with safetensors weights: {str(error).splitlines()[0]}"
        ) from error
    return Autoencoder(vae).to(device or "cpu")
