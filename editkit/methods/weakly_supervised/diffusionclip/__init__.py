"""DiffusionCLIP: Text-Guided Diffusion Models for Robust Image Manipulation (Kim et al., CVPR 2022, arXiv 2110.02711).

A whole diffusion model is fine-tuned through a short deterministic chain, so that inverted images come back edited.
"""

from editkit.methods.weakly_supervised.diffusionclip.editor import DiffusionClipEditor
from editkit.methods.weakly_supervised.diffusionclip.method import DiffusionClip

__all__ = ["DiffusionClip", "DiffusionClipEditor"]
