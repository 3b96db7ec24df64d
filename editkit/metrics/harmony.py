"""Does what stands in a mask belong to the picture? A small network tells true renderings from pasted objects.

It sees the mask too, so that it looks where the seam is. Evaluation only, never training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from editkit.metrics.folder import read, write
from editkit.metrics.oracle import Residual, norm

SIDE = 64  # pixels; other sizes are resized


class HarmonyNet(nn.Module):
    """Tell rendered pictures from pasted ones.

    Args:
        widths: channels at 32, 16 and 8 pixels, multiples of 8.
    """

    def __init__(self, widths: Sequence[int] = (32, 48, 64)):
        super().__init__()
        self.widths = list(widths)
        fine, middle, coarse = widths
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(2),  # keeps every pixel, and so the seam
            nn.Conv2d(16, fine, 3, padding=1),
            Residual(fine, fine),
            Residual(fine, middle, stride=2),
            Residual(middle, coarse, stride=2),
            norm(coarse),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * coarse, 1)

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Return the logit (B,) that a picture is a true rendering, from images (B, 3, H, W) and masks (B, 1, H, W)."""
        seen = torch.cat([images, 2 * masks.to(images) - 1], 1)
        if seen.shape[-2:] != (SIDE, SIDE):
            seen = nn.functional.interpolate(seen, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        maps = self.trunk(seen)
        return self.head(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1))[:, 0]

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors (fp16) and config.json."""
        write(self, folder, "harmony", {"widths": self.widths})


def load_harmony(path: str | Path = "editkit:toy-harmony") -> HarmonyNet:
    """Load a network in evaluation mode, float32, from a folder that `HarmonyNet.save` wrote.

    Raises:
        UserError: no such folder, or it holds something else.
    """
    return read(path, "harmony", lambda config: HarmonyNet(config["widths"]))


def outranked(logits: Tensor, real: Tensor) -> Tensor:
    """Return for each logit (N,) the share of real pictures' logits (M,) above it, equal ones half.

    The mean over pictures is the area under the ROC curve of telling them from the real ones (Mann and Whitney): near .5
    nobody can, at 1 everybody could.
    """
    return (real[None] > logits[:, None]).float().mean(1) + 0.5 * (real[None] == logits[:, None]).float().mean(1)
