"""Scenes as classes: what networks that read them are taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.data.toyworld.scenes.factors import COLOURS, MOST, PLACES, SEASONS, STYLES, TEXTURES, TIMES, Scene, readable
from editkit.data.toyworld.scenes.shapes import SHAPES

COUNTS = tuple(str(number) for number in range(MOST + 1))
OF_WHOLES: Mapping[str, tuple[str, ...]] = {
    "place": PLACES,
    "time": TIMES,
    "season": SEASONS,
    "style": STYLES,
    "count": COUNTS,
}
OF_THINGS: Mapping[str, tuple[str, ...]] = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "texture": TEXTURES}
UNSEEN = -100  # class of what is not to be read
NOTHING = len(OF_THINGS["shape"])


def whole_classes(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Return the classes (B,) of the factors of whole pictures, UNSEEN where a picture does not show one."""
    told = [{**vars(scene), "count": str(len(scene.things))} for scene in scenes]
    return {
        name: torch.tensor(
            [values.index(one[name]) if name in readable(scene) else UNSEEN for one, scene in zip(told, scenes, strict=True)]
        )
        for name, values in OF_WHOLES.items()
    }


def cell_classes(scenes: Sequence[Scene], instances: Tensor, side: int) -> dict[str, Tensor]:
    """Return the classes (B, side, side) of what each cell shows in its middle: NOTHING or UNSEEN where no object is.

    Args:
        instances: (B, H, W), 0 or 1 + the number of an object of the scene.
    """
    cells = F.interpolate(instances[:, None].float(), side, mode="nearest-exact")[:, 0].long()
    found = {}
    for name, values in OF_THINGS.items():
        empty = NOTHING if name == "shape" else UNSEEN
        tables = [[empty, *(values.index(getattr(thing, name)) for thing in scene.things)] for scene in scenes]
        pairs = zip(tables, cells, strict=True)
        found[name] = torch.stack([torch.tensor(table, device=cells.device)[one] for table, one in pairs])
    return found


def class_cost(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cross entropy over what is to be read; 0 where nothing is."""
    classes = classes.to(logits.device)
    total = F.cross_entropy(logits.float(), classes, ignore_index=UNSEEN, reduction="sum")
    return total / (classes != UNSEEN).sum().clamp_min(1)
