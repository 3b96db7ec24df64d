"""Fine-grained Image Editing by Pixel-wise Guidance Using Diffusion Models (Matsunaga et al., arXiv 2212.02024).

A few labelled images teach small classifiers to read parts off the features of a frozen diffusion network, one classifier for
each noise level. The user changes the map of an image's parts, and sampling from the inverted image follows the changed map.
"""

from editkit.methods.weakly_supervised.pixel_guided.editor import PixelGuidedEditor
from editkit.methods.weakly_supervised.pixel_guided.method import PixelGuided

__all__ = ["PixelGuided", "PixelGuidedEditor"]
