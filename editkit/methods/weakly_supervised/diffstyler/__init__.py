"""DiffStyler: Controllable Dual Diffusion for Text-Driven Image Stylization (arXiv 2211.10682).

A picture is inverted with a model of photographs; on the way back that model and one of paintings share each step, and the
second is guided by a text and by the picture. Neither is changed by an edit; the model of paintings can be trained.
"""

from editkit.methods.weakly_supervised.diffstyler.editor import DiffStylerEditor
from editkit.methods.weakly_supervised.diffstyler.method import DiffStyler

__all__ = ["DiffStyler", "DiffStylerEditor"]
