"""The directional CLIP loss: the image should move in CLIP's space as the text moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.losses.templates import TEMPLATES, fill

# keeps the direction of an image that has not moved finite, and its gradient too
GUARD = 1e-7


class TextImageEncoder(Protocol):
    """What the loss needs of a CLIP: unit embeddings (B, D) of images in [-1, 1] and of texts."""

    def image(self, images: Tensor) -> Tensor: ...

    def text(self, texts: Sequence[str]) -> Tensor: ...


class DirectionalClip(nn.Module):
    """1 - cos(dI, dT) of StyleGAN-NADA (Gal et al. 2021) in the form that DiffusionCLIP and Asyrp train with.

    dI = E(image) - E(source), divided by its norm + 1e-7; dT = the mean over templates of E(target) - E(source text),
    normalised. Every embedding has unit length before the difference.

    Args:
        clip: the encoder, frozen.
        source: what the images show ("a face").
        target: what they should show ("a smiling face").
        templates: sentences with * for the text.
    """

    def __init__(self, clip: TextImageEncoder, source: str, target: str, *, templates: Sequence[str] = TEMPLATES) -> None:
        super().__init__()
        self.clip = clip
        with torch.no_grad():
            moves = clip.text([fill(t, target) for t in templates]) - clip.text([fill(t, source) for t in templates])
            pair = clip.text([source, target])
        self.register_buffer("direction", F.normalize(moves.mean(0), dim=0), persistent=False)
        self.text_cosine = float(pair[0] @ pair[1])

    def features(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of source images, to be computed once and handed to `cosine`."""
        return self.clip.image(images)

    def cosine(self, images: Tensor, source_features: Tensor) -> Tensor:
        """Return cos(dI, dT) per image, (B,); 0 for an image equal to its source."""
        move = self.clip.image(images) - source_features
        # the norm's own gradient is undefined at zero, so the root is guarded as well as the quotient
        norm = (move.square().sum(-1, keepdim=True) + GUARD**2).sqrt()
        return (move / (norm + GUARD)) @ self.direction

    def forward(self, images: Tensor, source_features: Tensor) -> Tensor:
        """Return 1 - cos(dI, dT) per image, (B,), between 0 and 2."""
        return 1 - self.cosine(images, source_features)

    def log(self, images: Tensor, source_features: Tensor) -> Tensor:
        """Return -log((1 + cos(dI, dT)) / 2) per image, (B,): ln 2 for an unmoved one, 0 when aligned, unbounded when opposed."""
        return log_distance(self.cosine(images, source_features))


def log_distance(cosine: Tensor) -> Tensor:
    """Return -log((1 + cosine) / 2), guarded where the cosine is -1."""
    return -torch.log(((1 + cosine) / 2).clamp_min(GUARD))
