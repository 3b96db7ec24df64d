"""CycleNet: cycle consistency in text-guided diffusion for image manipulation (Xu et al., NeurIPS 2023, arXiv 2310.13165).

A ControlNet that sees the image itself and reads what it shows, beside a UNet that reads what it should become, trained on
unpaired images so that translations stay and lead back.
"""

from editkit.methods.weakly_supervised.cyclenet.editor import CycleNetEditor
from editkit.methods.weakly_supervised.cyclenet.method import CycleNet

__all__ = ["CycleNet", "CycleNetEditor"]
