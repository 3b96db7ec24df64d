"""UNIT-DDPM: UNpaired Image Translation with Denoising Diffusion Probabilistic Models (arXiv 2104.05358).

Each of two domains has a diffusion model that also sees the picture's counterpart in the other domain, under as much noise. Two
translators, which only training needs, stand in for the counterparts that unpaired pictures lack.
"""

from editkit.methods.weakly_supervised.unit_ddpm.editor import UnitDDPMEditor
from editkit.methods.weakly_supervised.unit_ddpm.method import UnitDDPM
from editkit.methods.weakly_supervised.unit_ddpm.networks import NoiseNetwork
from editkit.methods.weakly_supervised.unit_ddpm.pairs import PairedUnitDDPM

__all__ = ["NoiseNetwork", "PairedUnitDDPM", "UnitDDPM", "UnitDDPMEditor"]
