"""The figures of the models that read scenes, on scenes that none of them was trained on: what their cards say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from editkit.backbones.autoencoder import Autoencoder
from editkit.backbones.clip import ClipEncoder
from editkit.data.captioned import CaptionedDataset
from editkit.data.disturbances import compressed
from editkit.data.items import collate, image_tensor
from editkit.data.scene_classes import OF_WHOLES
from editkit.data.toyworld.scenes.captions import full_caption
from editkit.data.toyworld.scenes.drawing import Picture, picture, render
from editkit.data.toyworld.scenes.factors import COLOURS, MOST, SEASONAL, STYLES, Scene, readable
from editkit.data.toyworld.scenes.words import AT_TIME, COLOUR_WORDS, IN_SEASON, SETTINGS, SHAPE_WORDS, a, noun
from editkit.data.toyworld.scenes.world import scene_at
from editkit.metrics.images import psnr
from editkit.metrics.scene_oracle import THERE, SceneOracle

BATCH = 64


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
    for part in batched(scenes, BATCH):
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


@torch.no_grad()
def clip_scene_figures(clip: ClipEncoder, *, images: int = 512) -> dict[str, Any]:
    """Return zero-shot accuracies on test scenes, and how often the full caption is the likest of 64 for its own picture."""
    scenes = [scene_at("test", k) for k in range(images)]
    seen = torch.cat([clip.image(torch.stack([image_tensor(render(one)) for one in part])) for part in batched(scenes, BATCH)])
    figures: dict[str, Any] = {}
    for name, (prompts, clear) in PROMPTS.items():
        right = []
        for scene, features in zip(scenes, seen, strict=True):
            if clear(scene):
                options = prompts(scene)
                right.append(list(options)[int((clip.text(list(options.values())) @ features).argmax())] == answer(scene, name))
        figures[f"zero-shot {name}"] = round(sum(right) / len(right), 4)
    texts = torch.cat([clip.text([full_caption(one).text for one in part]) for part in batched(scenes, BATCH)])
    hits = [
        (own @ words.T).argmax(1) == torch.arange(len(own), device=own.device)
        for own, words in zip(seen.split(BATCH), texts.split(BATCH), strict=True)
    ]
    return figures | {"caption of 64": round(torch.cat(hits).float().mean().item(), 4)}


def answer(scene: Scene, name: str) -> str:
    """Return the value of a factor, or of an aspect of the first object."""
    return str(getattr(scene if name in OF_WHOLES else scene.things[0], name))


def _alone(scene: Scene) -> bool:
    return len(scene.things) == 1


# By factor: the prompts by value, for a scene, and the scenes that can be asked about.
PROMPTS: Mapping[str, tuple[Callable[[Scene], dict[str, str]], Callable[[Scene], bool]]] = {
    "place": (lambda scene: {place: words[0] for place, words in SETTINGS.items()}, lambda scene: True),
    "time": (
        lambda scene: {time: f"{SETTINGS[scene.place][0]} {words[0]}" for time, words in AT_TIME.items()},
        lambda scene: True,
    ),
    "season": (
        lambda scene: {season: f"{SETTINGS[scene.place][0]} {words[0]}" for season, words in IN_SEASON.items()},
        lambda scene: scene.place in SEASONAL,
    ),
    "shape": (lambda scene: {shape: a(words[0]) for shape, words in SHAPE_WORDS.items()}, _alone),
    "colour": (lambda scene: {colour: a(f"{words[0]} object") for colour, words in COLOUR_WORDS.items()}, _alone),
}


def batched(scenes: Sequence[Scene], size: int) -> Iterator[Sequence[Scene]]:
    """Yield the scenes in parts of a size."""
    for start in range(0, len(scenes), size):
        yield scenes[start : start + size]


def named(kind: str, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the worst share and all of them."""
    worst = min(shares, key=lambda name: shares[name])
    return {f"{kind} worst": f"{worst} {shares[worst]}", f"{kind} accuracy": dict(shares)}


def prompt_figures(
    draw: Callable[[list[str]], Tensor], oracle: SceneOracle, *, count: int = 192, scale: float, steps: int
) -> dict[str, Any]:
    """Return how often the oracle reads the shape and the colour that a text-to-image model was asked for.

    Each shape is asked for in each colour once, as far as `count` reaches: "a red cup", nothing else.

    Args:
        draw: returns one picture (B, 3, 64, 64) per text.
        scale, steps: what it draws with, for the card.
    """
    asked = [(shape, colour) for shape in SHAPE_WORDS for colour in COLOURS][:: max(1, len(SHAPE_WORDS) * len(COLOURS) // count)]
    right: dict[str, list[bool]] = {"shape": [], "colour": []}
    for part in batched(asked, BATCH // 2):
        shown = draw([a(noun({"shape": shape, "colour": colour})) for shape, colour in part])
        read = oracle.read_objects(shown, torch.ones(len(shown), 1, *shown.shape[2:])).aspects
        for n, wanted in enumerate(part):
            for name, value in zip(right, wanted, strict=True):
                right[name].append(read[name].values[int(read[name].classes[n, 0])] == value)
    shares = {f"prompted {name}": round(sum(hits) / len(hits), 4) for name, hits in right.items()}
    return {**shares, "prompts": len(asked), "guidance scale": scale, "steps of figures": steps}


@torch.no_grad()
def autoencoder_figures(autoencoder: Autoencoder, images: int = 256) -> dict[str, Any]:
    """Return the mean PSNR in dB of test pictures, by domain."""
    size = autoencoder.vae.config.sample_size
    found: dict[str, list[float]] = {"scenes": [], "faces": []}
    dataset = CaptionedDataset("test", images, size)
    for first in range(0, images, 32):
        batch = collate([dataset[k] for k in range(first, min(first + 32, images))])
        values = psnr(autoencoder.reconstruct(batch["image"]), batch["image"])
        for key, value in zip(batch["key"], values.tolist(), strict=True):
            found[key.partition("/")[0]].append(value)
    return {f"psnr_{domain}": round(sum(values) / len(values), 2) for domain, values in found.items()}
