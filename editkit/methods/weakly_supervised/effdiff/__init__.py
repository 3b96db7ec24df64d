"""EffDiff: Towards Real-time Text-driven Image Manipulation with Unconditional Diffusion Models (arXiv 2304.04344).

A copy of the network is fine-tuned on one call only, its estimate of the image from x_t0; an edit is noise in closed form
and a few steps down. It takes seconds for one image, so that it can be done for that image alone as well.
"""

from editkit.methods.weakly_supervised.effdiff.editor import EffDiffEditor
from editkit.methods.weakly_supervised.effdiff.method import EffDiff
from editkit.methods.weakly_supervised.effdiff.single import SingleImageEditor

__all__ = ["EffDiff", "EffDiffEditor", "SingleImageEditor"]
