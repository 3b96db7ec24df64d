"""EGSDE: Unpaired Image-to-Image Translation via Energy-Guided Stochastic Differential Equations (arXiv 2207.06635).

A diffusion model of the target domain, begun at the noised source, is steered by two energies: away from what a classifier of
noised images knows the source's domain by, and towards the source's low frequencies. Only the classifier is trained.
"""

from editkit.methods.weakly_supervised.egsde.editor import EGSDEEditor
from editkit.methods.weakly_supervised.egsde.method import EGSDE

__all__ = ["EGSDE", "EGSDEEditor"]
