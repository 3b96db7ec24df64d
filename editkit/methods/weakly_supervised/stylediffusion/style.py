"""What a style is: the picture that shows it, what is left when it is removed, and the difference of the two for CLIP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from editkit.backbones.inversion import Inversion
from editkit.data.fit import fit
from editkit.data.photo import Photo, photo_from_pil, read_photo
from editkit.data.toyworld.faces import render
from editkit.data.toyworld.styles import FILTERS, restyled
from editkit.data.toyworld.world import face_at
from editkit.engine.cache import InversionCache
from editkit.engine.sample import sample
from editkit.errors import UsageError, suggestion
from editkit.training.chain import Losses
from editkit.types import Levels

TOY = "toy:"
FACE = 1  # of the toy world's validation split, which no training sees
WEIGHTS = (0.299, 0.587, 0.114)  # of ITU-R 601-2
GUARD = 1e-7  # a style that is its own content has no direction


def style_name(style: str) -> str:
    """Return what a style's trained file is called: the name of the picture, or of the toy style."""
    return style.removeprefix(TOY) if style.startswith(TOY) else Path(style).stem


def style_picture(style: str, size: tuple[int, int]) -> Tensor:
    """Return a style picture (3, h, w) in [-1, 1], the largest centred part of it that has the shape of `size`.

    Args:
        style: a picture file, or "toy:" and a style of the toy world ("toy:neon"), which is drawn of a face.
        size: (h, w).

    Raises:
        UserError: a file that is missing or no picture.
        UsageError: a style that the toy world has not.
    """
    photo = _toy(style.removeprefix(TOY), max(size)) if style.startswith(TOY) else read_photo(style)
    return fit(photo.size, size).image(photo)


def _toy(name: str, side: int) -> Photo:
    if name not in FILTERS:
        raise UsageError(f"the toy world has no style {name!r}.{suggestion(name, FILTERS)} It has: {', '.join(FILTERS)}")
    face, _ = render(face_at("validation", FACE), side)
    return photo_from_pil(Image.fromarray(restyled(face, name)), name=f"{TOY}{name}")


def luma(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) without colour: 0.299 R + 0.587 G + 0.114 B in all three channels."""
    weights = images.new_tensor(WEIGHTS)[:, None, None]
    return (images * weights).sum(1, keepdim=True).expand_as(images).contiguous()


class Gray:
    """Removes the colour of photographs, which have no other style.

    Attributes:
        calls: network calls for an image.
    """

    calls: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) without their style."""
        return luma(images)


class Removal(Gray):
    """Removes colour, then what a model of photographs does not know: inverts and reconstructs.

    Args:
        inversion: of the original network.
        levels: up to T_remov; the farther, the more counts as style.
        cache: keeps inversions for later runs.
    """

    def __init__(self, inversion: Inversion, levels: Levels, cache: InversionCache | None = None) -> None:
        self.inversion, self.levels, self.cache = inversion, levels, cache
        self.calls = 2 * (len(levels) - 1) - 1

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) without their style."""
        backbone = self.inversion.backbone
        x = self.inversion(backbone.encode(luma(images)), self.levels, self.cache).x
        return backbone.decode(sample(backbone, x, self.levels))


@dataclass(frozen=True)
class Disentanglement:
    """l1_weight * |D_cs - D_s| + direction_weight * (1 - cos(D_cs, D_s)) with D = E(with style) - E(without).

    E are CLIP's embeddings of images, whose length is kept: of unit vectors the first term would be next to nothing. It is a
    mean over their numbers. All of it is computed in float32.

    Attributes:
        embed: E, from images (B, 3, H, W) to (B, D).
        style: D_s, (1, D).
    """

    embed: Callable[[Tensor], Tensor]
    style: Tensor
    l1_weight: float
    direction_weight: float

    def __call__(self, stylised: Tensor, contents: Tensor) -> Losses:
        """Return the weighted terms per image, (B,) each, and the cosine, which is only reported.

        Args:
            stylised: (B, 3, H, W), not clamped.
            contents: E of the contents without their style, (B, D).
        """
        with torch.autocast(stylised.device.type, enabled=False):
            moved = self.embed(stylised) - contents
            cosine = F.cosine_similarity(moved, self.style, dim=-1, eps=GUARD)
            terms = {
                "l1": self.l1_weight * (moved - self.style).abs().mean(-1),
                "direction": self.direction_weight * (1 - cosine),
            }
        return terms, {"clip_direction": cosine.detach()}
