"""InstructPix2Pix: Learning to Follow Image Editing Instructions (Brooks et al., CVPR 2023, arXiv 2211.09800).

A text-to-image UNet gets the image's latents as four more input channels and is trained on pairs with an instruction; it then
edits any image by any instruction, in one pass of sampling. The pairs themselves are drawn by a text-to-image model.
"""

from editkit.methods.fully_supervised.instructpix2pix.method import InstructPix2Pix
from editkit.methods.fully_supervised.instructpix2pix.pairs import PairMaker

__all__ = ["InstructPix2Pix", "PairMaker"]
