"""Asyrp: Diffusion Models Already Have a Semantic Latent Space (Kwon et al., ICLR 2023, arXiv 2210.10960).

A small network shifts the bottleneck of a frozen diffusion model; only the x0 estimate follows the shift, not the direction.
"""

from editkit.methods.weakly_supervised.asyrp.editor import AsyrpEditor
from editkit.methods.weakly_supervised.asyrp.method import Asyrp

__all__ = ["Asyrp", "AsyrpEditor"]
