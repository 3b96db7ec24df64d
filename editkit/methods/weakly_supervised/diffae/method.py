"""Diffusion Autoencoders as a recipe names them."""

from __future__ import annotations

from editkit.methods.weakly_supervised.diffae.editor import DiffAEEditor
from editkit.training.code_editing import CodeEditing


class DiffAE(CodeEditing):
    """Edits with a trained diffusion autoencoder, its classifier of attributes and its latent DDIM; see `CodeEditing`."""

    editing_by = DiffAEEditor
