"""The toy latent diffusion models: text to image, and its twin that fills in what is masked."""

from editkit.methods.foundation.latent.inpainting import LatentInpainting
from editkit.methods.foundation.latent.text_to_image import LatentDiffusion

__all__ = ["LatentDiffusion", "LatentInpainting"]
