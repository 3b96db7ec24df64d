"""What classifiers of pixels see: the maps that blocks of a frozen diffusion network put out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.rng import noise

Maps = Mapping[str, Tensor]


@contextmanager
def watched(backbone: Backbone, places: Sequence[str]) -> Iterator[Maps]:
    """Hand out a mapping that holds, after each pass of the backbone, what these places put out in it, with its graph.

    Raises:
        UsageError: a place that the network does not have.
    """
    maps: dict[str, Tensor] = {}

    def keeper(place: str) -> Callable[[Tensor], None]:
        def keep(output: Tensor) -> None:
            maps[place] = output

        return keep

    with ExitStack() as stack:
        for place in places:
            stack.enter_context(backbone.taps(place, keeper(place)))
        yield maps


@torch.no_grad()
def noised_maps(backbone: Backbone, x0: Tensor, t: float, places: Sequence[str]) -> list[Tensor]:
    """Return the maps of images x0 (B, 3, H, W) noised to time t by the one noise that all images and times share."""
    shared = noise(x0.shape[1:], seed=0, key="", purpose="pixel-guided/features", device=x0.device)
    with watched(backbone, places) as maps:
        backbone(backbone.schedule.add_noise(x0, t, shared.expand_as(x0)), t)
    return [maps[place] for place in places]


def at_pixels(maps: Sequence[Tensor], size: Sequence[int], pixels: Tensor) -> Tensor:
    """Return the features (B, N, D) that enlarged maps have at pixels (B, N), numbered row by row, without enlarging them."""
    height, width = size
    x = (2 * (pixels % width) + 1) / width - 1
    y = (2 * torch.div(pixels, width, rounding_mode="floor") + 1) / height - 1
    places = torch.stack([x, y], -1)[:, None].to(maps[0])
    found = [F.grid_sample(part, places, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0] for part in maps]
    return torch.cat(found, 1).transpose(1, 2)
