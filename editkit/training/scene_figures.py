"""The figures of the models that read scenes, on scenes that none of them was trained on: what their cards say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editkit.data.disturbances import compressed
from editkit.data.items import image_tensor
from editkit.data.toyworld.scenes.drawing import Picture, picture
from editkit.data.toyworld.scenes.factors import COLOURS, MOST, PLACES, SEASONS, STYLES, TEXTURES, TIMES, Scene, readable
from editkit.data.toyworld.scenes.shapes import SHAPES
from editkit.data.toyworld.scenes.world import scene_at
from editkit.metrics.scene_oracle import THERE, SceneOracle

BATCH = 64
COUNTS = tuple(str(number) for number in range(MOST + 1))
OF_WHOLES: Mapping[str, tuple[str, ...]] = {
    "place": PLACES,
    "time": TIMES,
    "season": SEASONS,
    "style": STYLES,
    "count": COUNTS,
}
OF_THINGS: Mapping[str, tuple[str, ...]] = {"shape": tuple(SHAPES), "colour": tuple(COLOURS), "texture": TEXTURES}


def oracle_figures(
    oracle: SceneOracle, rebuild: Callable[[Tensor], Tensor] | None = None, *, images: int = 512
) -> dict[str, Any]:
    """Return the share of readable factors read rightly: clean, JPEG-like, held-out, in each style, and reconstructed.

    Args:
        rebuild: returns what an autoencoder makes of images; None leaves that out.
    """
    test = [scene_at("test", k) for k in range(images)]
    sets = {"clean": test, "heldout": [scene_at("heldout", k) for k in range(images // 2)]}
    sets |= {style: [replace(scene, style=style) for scene in test[: images // 2]] for style in STYLES[1:]}
    figures: dict[str, Any] = {}
    for name, scenes in sets.items():
        figures |= named(name, accuracy(oracle, scenes))
    spoil = lambda shown: compressed(shown, torch.full((len(shown),), 0.1))  # noqa: E731
    figures |= named("compressed", accuracy(oracle, test, spoil))
    if rebuild is not None:
        figures |= named("reconstructed", accuracy(oracle, test, rebuild))
    return figures | finding(oracle, test)


def accuracy(oracle: SceneOracle, scenes: Sequence[Scene], change: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
    """Return the share of what can be read in pictures of scenes that the oracle reads rightly, by factor and aspect."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        drawn = [picture(scene) for scene in part]
        shown = change(torch.stack([image_tensor(one.image) for one in drawn]))
        whole = oracle.read_scene(shown)
        objects = oracle.read_objects(shown, object_masks(drawn))
        for k, scene in enumerate(part):
            told = {**vars(scene), "count": str(len(scene.things))}
            for name in readable(scene) & whole.keys():
                right.setdefault(name, []).append(whole[name].values[int(whole[name].classes[k])] == told[name])
            for n, thing in enumerate(scene.things):
                right.setdefault("presence", []).append(bool(objects.presence[k, n] >= THERE))
                for name in readable(scene) & objects.aspects.keys():
                    read = objects.aspects[name]
                    right.setdefault(name, []).append(read.values[int(read.classes[k, n])] == getattr(thing, name))
    return {name: round(sum(flags) / len(flags), 4) for name, flags in sorted(right.items())}


def object_masks(drawn: Sequence[Picture]) -> Tensor:
    """Return the visible masks of pictures as (B, 4, H, W) float32, empty ones where there are fewer objects."""
    return torch.from_numpy(np.stack([np.pad(one.seen, ((0, MOST - len(one.seen)), (0, 0), (0, 0))) for one in drawn])).float()


def finding(oracle: SceneOracle, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return how often an object that a picture shows is found, and how often the same with another colour is."""
    found, mistaken = [], []
    for scene in scenes:
        shown = image_tensor(picture(scene).image)[None]
        thing = scene.things[0]
        absent = next(c for c in COLOURS if (thing.shape, c) not in {(one.shape, one.colour) for one in scene.things})
        found.append(oracle.find(shown, thing.shape, thing.colour).confidence.item() >= THERE)
        mistaken.append(oracle.find(shown, thing.shape, absent).confidence.item() >= THERE)
    return {"found": round(sum(found) / len(found), 4), "found though absent": round(sum(mistaken) / len(mistaken), 4)}


def named(kind: str, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the worst share and all of them."""
    worst = min(shares, key=lambda name: shares[name])
    return {f"{kind} worst": f"{worst} {shares[worst]}", f"{kind} accuracy": dict(shares)}
