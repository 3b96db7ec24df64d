"""DINOv2 (Oquab et al. 2023) as an encoder of references: images to one token of the whole and one of each patch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Dinov2Model

from editkit.backbones.assets import resolve
from editkit.backbones.clip import Preprocess, preprocess_of
from editkit.errors import UserError


class DinoEncoder(nn.Module):
    """A frozen Dinov2Model with what images go through first."""

    def __init__(self, model: Dinov2Model, preprocess: Preprocess) -> None:
        super().__init__()
        self.model, self.preprocess = model, preprocess
        self.requires_grad_(False)
        self.eval()

    @property
    def dim(self) -> int:
        """Return the width of the tokens."""
        return self.model.config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised tokens (B, 1 + N, dim) of images (B, 3, H, W) in [-1, 1], the whole image's first."""
        return self.model(self.preprocess(images).to(self.model.dtype)).last_hidden_state.float()

    def keys(self, images: Tensor, layer: int = -1) -> Tensor:
        """Return the attention's keys (B, N, dim) of the patches of images (B, 3, H, W) in [-1, 1], all heads side by side."""
        kept: list[Tensor] = []
        parts = self.model.get_submodule("encoder.layer")[layer].named_modules()  # type: ignore[index]
        project = next(part for name, part in parts if name.endswith(("k_proj", "key")))  # the name in transformers 5, and in 4
        hook = project.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            self(images)
        finally:
            hook.remove()
        return kept[0][:, 1:].float()


def load_dino(path: str | Path = "editkit:toy-dino", *, download: bool = False, revision: str | None = None) -> DinoEncoder:
    """Load a Dinov2Model folder with its preprocessor config, in single precision.

    Args:
        path: folder, bundled name ("editkit:toy-dino") or hub name that is already on this machine.
        download: fetch a hub name that is not on this machine.
        revision: revision of a hub name.

    Raises:
        UserError: no such weights, or not a Dinov2Model.
    """
    folder = resolve(path, download=download, revision=revision)
    try:
        model = Dinov2Model.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{folder} does not hold a Dinov2Model: {str(error).splitlines()[0]}") from error
    if not isinstance(model.config.image_size, int):
        raise UserError(f"{folder} wants images of {model.config.image_size} pixels: only squares are supported")
    return DinoEncoder(model, preprocess_of(folder, model.config.image_size))
