"""StyleDiffusion: Controllable Disentangled Style Transfer via Diffusion Models (Wang et al., ICCV 2023, arXiv 2308.07863).

Style is what a diffusion model of photographs takes away from a picture; a copy of the model is fine-tuned for one style picture
to add the same to any content, by differences of CLIP's embeddings of images. No text is used.
"""

from editkit.methods.weakly_supervised.stylediffusion.editor import StyleDiffusionEditor
from editkit.methods.weakly_supervised.stylediffusion.method import StyleDiffusion

__all__ = ["StyleDiffusion", "StyleDiffusionEditor"]
