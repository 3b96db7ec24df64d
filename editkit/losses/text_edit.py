"""What an edit towards a text is trained on: the CLIP direction in its log form, staying close, staying the same person."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from editkit.errors import UsageError
from editkit.losses.clip_direction import DirectionalClip, log_distance
from editkit.losses.identity import Identity

Terms = dict[str, Tensor]


class TextEdit(nn.Module):
    """clip_weight * -log((1 + cos(dI, dT)) / 2) + l1_weight * mean |x0 - x| + identity_weight * (1 - cos of identities).

    The loss of DiffusionCLIP (arXiv 2110.02711) and EffDiff (arXiv 2304.04344) as their released code has it; the papers write
    1 - cos(dI, dT) for the first term. Our departure: the logarithm is taken per image, not of a batch's mean. All of it is
    computed in float32, whatever the precision around it.

    Args:
        direction: the CLIP direction between the two texts.
        identity: compares persons; None if identity_weight is 0.

    Raises:
        UsageError: an identity weight without a network.
    """

    def __init__(
        self,
        direction: DirectionalClip,
        identity: Identity | None = None,
        *,
        clip_weight: float = 3.0,
        l1_weight: float = 1.0,
        identity_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if identity_weight and identity is None:
            raise UsageError(
                f"method.identity_weight={identity_weight} needs a network: set method.identity, or method.identity_weight=0"
            )
        self.direction = direction
        self.identity = identity if identity_weight else None
        self.clip_weight, self.l1_weight, self.identity_weight = clip_weight, l1_weight, identity_weight

    def features(self, images: Tensor) -> Terms:
        """Return what source images (B, 3, H, W) are compared by, (B, D) each, to be computed once an image."""
        with torch.autocast(images.device.type, enabled=False):
            found = {"clip": self.direction.features(images)}
            return found if self.identity is None else found | {"identity": self.identity.features(images)}

    def forward(self, edited: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> tuple[Terms, Terms]:
        """Return the weighted terms per image, (B,) each, and the cosine of the directions, which is only reported.

        Args:
            edited: (B, 3, H, W), not clamped.
            images: the source images.
            features: of the source images.
        """
        with torch.autocast(edited.device.type, enabled=False):  # the direction's guards are below what bf16 resolves
            cosine = self.direction.cosine(edited, features["clip"])
        terms = {"clip": self.clip_weight * log_distance(cosine), **self.closeness(edited, images, features)}
        return terms, {"clip_direction": cosine.detach()}

    def closeness(self, edited: Tensor, images: Tensor, features: Mapping[str, Tensor]) -> Terms:
        """Return the weighted terms that no text enters."""
        with torch.autocast(edited.device.type, enabled=False):
            terms = {"l1": self.l1_weight * (edited - images).abs().mean((1, 2, 3))}
            if self.identity is not None:
                terms["identity"] = self.identity_weight * self.identity(edited, features["identity"])
        return terms
