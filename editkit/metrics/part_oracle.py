"""The part oracle: a small network that finds the parts of a toy face in its picture. Evaluation only, never training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.metrics.folder import read, write
from editkit.metrics.oracle import Residual, norm

KIND = "part oracle"


class PartOracle(nn.Module):
    """Name the part that each pixel shows, down to an eighth of the size and back up with the finer maps beside.

    Args:
        parts: their names, in the order of the labels' numbers.
        widths: channels at full size, a half and a quarter of it.
    """

    def __init__(self, parts: Sequence[str], widths: Sequence[int] = (16, 32, 64)):
        super().__init__()
        self.parts, self.config = tuple(parts), {"widths": list(widths)}
        fine, middle, coarse = widths
        self.enter = nn.Conv2d(3, fine, 3, padding=1)
        self.down = nn.ModuleList([Residual(fine, fine), Residual(fine, middle, 2), Residual(middle, coarse, 2)])
        self.bottom = Residual(coarse, coarse)
        self.up = nn.ModuleList([Residual(coarse + middle, middle), Residual(middle + fine, fine)])
        self.leave = nn.Sequential(norm(fine), nn.SiLU(), nn.Conv2d(fine, len(parts), 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K, H, W) of images (B, 3, H, W) in [-1, 1], sides multiples of 4."""
        x, finer = self.enter(images), []
        for block in self.down:
            x = block(x)
            finer.append(x)
        x = self.bottom(finer.pop())
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(torch.cat([x, finer.pop()], 1))
        return self.leave(x)

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Return the number of the part that each pixel shows, (B, H, W)."""
        return self(images).argmax(1)

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors (fp16) and config.json."""
        write(self, folder, KIND, {**self.config, "parts": self.parts})


def load_part_oracle(path: str | Path = "editkit:toy-part-oracle") -> PartOracle:
    """Load a part oracle in evaluation mode, float32, from a folder that `PartOracle.save` wrote.

    Raises:
        UserError: no such folder, or it is none.
    """
    return read(path, KIND, lambda config: PartOracle(config["parts"], config["widths"]))


def overlap(found: Tensor, wanted: Tensor, parts: Sequence[int]) -> Tensor:
    """Return the intersection over union (B,) of the pixels that show one of some parts; nan where neither map has any.

    Args:
        found, wanted: numbers of parts (B, H, W).
        parts: numbers of the parts that count, taken together.
    """
    numbers = torch.tensor(list(parts), device=found.device)
    seen, asked = (torch.isin(labels, numbers).flatten(1) for labels in (found, wanted))
    return (seen & asked).sum(1).float() / (seen | asked).sum(1)
