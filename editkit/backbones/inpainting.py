"""What checkpoints with extra input channels expect in them: `Condition.concat` of inpainting models and of InstructPix2Pix."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.latent import LatentBackbone
from editkit.errors import UsageError

MASK_RESIZES = ("bilinear", "nearest")


def inpainting_channels(backbone: LatentBackbone, images: Tensor, masks: Tensor) -> Tensor:
    """Return [mask, masked image's latents], (B, 5, h, w), as Stable Diffusion's inpainting checkpoints were trained.

    The mask is 1 where to repaint, at the latents' size by nearest neighbour; there the image is 0 (grey). The latents are
    the posterior's mean, scaled. (Paint by Example has another order and the opposite mask: `exemplar_channels`.)

    Args:
        backbone: of nine input channels.
        images: (B, 3, H, W) in [-1, 1].
        masks: (B, 1, H, W), 1 = edit here; cut at 0.5.

    Raises:
        UsageError: a backbone of another layout.
    """
    _require(backbone, 5, "inpainting", "sd15_inpainting")
    repaint = (masks >= 0.5).to(images.dtype)
    latents = backbone.encode(images * (1 - repaint))
    return torch.cat([F.interpolate(repaint, size=latents.shape[2:]).to(latents.dtype), latents], dim=1)


def exemplar_channels(
    backbone: LatentBackbone,
    images: Tensor,
    masks: Tensor,
    *,
    resize: str = "bilinear",
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return [masked image's latents, mask], (B, 5, h, w), as Paint by Example was trained: its mask is 1 where to KEEP.

    Args:
        backbone: a Paint by Example model.
        images: (B, 3, H, W) in [-1, 1]; grey where to repaint.
        masks: (B, 1, H, W), 1 = edit here; cut at 0.5.
        resize: how the mask comes to the latents' size, "bilinear" without smoothing (the authors) or "nearest" (diffusers).
        encode: images to scaled latents; None = the backbone's, the posterior's mean.

    Raises:
        UsageError: another `resize`.
    """
    if resize not in MASK_RESIZES:
        raise UsageError(f"unknown mask_resize {resize!r}: choose from {', '.join(MASK_RESIZES)}")
    keep = (masks <= 0.5).to(images.dtype)
    latents = (encode or backbone.encode)(images * keep)
    small = F.interpolate(keep, size=latents.shape[2:], mode=resize)
    return torch.cat([latents, small.to(latents.dtype)], dim=1)


def image_channels(backbone: LatentBackbone, images: Tensor) -> Tensor:
    """Return the latents (B, 4, h, w) of images (B, 3, H, W) in [-1, 1] as InstructPix2Pix takes them: the mean, unscaled.

    Its unconditional branch has zeros in their place (arXiv 2211.09800, section 3.2.1).

    Raises:
        UsageError: a backbone of another layout.
    """
    _require(backbone, 4, "editing by instruction", "instructpix2pix")
    return backbone.posterior(images)[0]


def _require(backbone: LatentBackbone, extra: int, task: str, example: str) -> None:
    if backbone.extra_channels != extra:
        latent, channels = backbone.sample_shape[0], backbone.unet.config.in_channels
        raise UsageError(
            f"{task} needs a UNet of {latent + extra} input channels, this backbone's has {channels}: "
            f"choose one that was trained for it, such as backbone={example}"
        )
