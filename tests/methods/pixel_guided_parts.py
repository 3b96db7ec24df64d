"""A tiny Pixel-Guided: a random network, two parts that its features tell apart."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from editkit.methods.weakly_supervised.pixel_guided import PixelGuided
from editkit.types import EditRequest
from tests.methods.asyrp_parts import tiny_backbone
from tests.training.toys import start

SIDE = 8


def method(**changes) -> PixelGuided:
    torch.manual_seed(6)
    settings = {
        "classes": ("dark", "light", "other"),
        "places": ("up.0", "up.1.0"),
        "last": 60,
        "stride": 10,
        "map_times": (0, 20),
        "members": 3,
        "pixels": 48,
        "drawn": 32,
        "least": 1,
        "start": 40,
        "scale": 20.0,
        "grow": 1,
    }
    return PixelGuided(backbone=tiny_backbone(), optimizer=partial(torch.optim.Adam, lr=3e-3), **(settings | changes))


def halves(count=6) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 8, 8) of a dark and a light part and their maps (N, 8, 8)."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for k in range(count):
        labels[k, :, 2 + k % 4 :] = 1
    images = labels[:, None] * 1.2 - 0.6 + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return images.clamp(-1, 1), labels


class Labelled(list):
    """A data set of the halves."""

    def __init__(self):
        images, labels = halves()
        super().__init__(
            {"image": i, "labels": m, "key": f"{k}.png"} for k, (i, m) in enumerate(zip(images, labels, strict=True))
        )

    def batch(self):
        images, labels = halves()
        return {"image": images, "labels": labels, "key": [item["key"] for item in self]}


def trained(steps=250, **changes) -> PixelGuided:
    made = method(**changes)
    data = Labelled()
    made.precompute(data)
    start(made, steps=steps, batch_size=6)
    for _ in range(steps):
        made.stepper.run(data.batch())
    made.stepper = None
    return made


def requests(count=2, shift=2, **changes) -> list[EditRequest]:
    """Return requests that move the border between the parts."""
    images, labels = halves(count)
    wanted = labels.roll(shift, 2)
    wanted[:, :, :shift] = 0
    given = zip(images, wanted, strict=True)
    return [
        EditRequest(f"{k}.png", **{"image": i, "segmentation": m[None].float(), "labels": "light"} | changes)
        for k, (i, m) in enumerate(given)
    ]
