"""Diffusion Autoencoders (Preechakul et al., CVPR 2022, arXiv 2111.15640): a code says what an image shows, noise holds the rest.

Three stages: `Autoencoder` trains encoder and decoder, `Prior` a diffusion model of the codes, `Classifier` the directions of
attributes among them; `EncoderStart` is one of ours before them, for short trainings. `DiffAE` edits with what they made.
"""

from editkit.methods.weakly_supervised.diffae.autoencoder import Autoencoder
from editkit.methods.weakly_supervised.diffae.editor import DiffAEEditor
from editkit.methods.weakly_supervised.diffae.method import DiffAE
from editkit.training.encoder_start import EncoderStart
from editkit.training.over_codes import Classifier, Prior

__all__ = ["Autoencoder", "Classifier", "DiffAE", "DiffAEEditor", "EncoderStart", "Prior"]
