"""Paint by Example: Exemplar-based Image Editing with Diffusion Models (Yang et al., CVPR 2023, arXiv 2211.13227).

A text-to-image UNet learns to fill a hole from a picture of what belongs there. The reference enters as one token, the class
token of CLIP through a few blocks, too little to copy it from; in training it is the hole's own content, changed by
augmentation (`editkit.data.box_exemplars`).
"""

from editkit.methods.self_supervised.pbe.editor import PaintByExampleEditor
from editkit.methods.self_supervised.pbe.method import PaintByExample

__all__ = ["PaintByExample", "PaintByExampleEditor"]
