"""The figures of the bundled models, on faces that none of them was trained on: what their cards say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.assets import resolve
from editkit.backbones.clip import ClipEncoder
from editkit.backbones.pixel import PixelBackbone
from editkit.data.items import image_tensor
from editkit.data.toyworld import animals, styled
from editkit.data.toyworld.faces import CATEGORICAL, HAIRS, Face, render, visible
from editkit.data.toyworld.world import EDITS, SOURCE_PROMPT, counterfactual, face_at, sources
from editkit.engine.invert import DDIM, FixedPoint, Inverter, replay
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.metrics.frechet import frechet
from editkit.metrics.images import psnr
from editkit.metrics.oracle import Oracle

BATCH = 32
CONFIDENT = 0.9
PROMPTS: Mapping[str, tuple[dict[Any, str], Callable[[Face], Any], Callable[[Face], bool]]] = {
    "expression": ({v: EDITS[v].prompt for v in CATEGORICAL["expression"]}, lambda f: f.expression, lambda f: True),
    "glasses": ({True: "a face with glasses", False: "a face without glasses"}, lambda f: f.glasses, lambda f: True),
    "age group": (
        {"young": "a young face", "old": "an old face"},
        lambda f: "old" if f.age >= 60 else "young",
        lambda f: f.age <= 42 or f.age >= 63,
    ),
    "hair colour": (
        {colour: f"a face with {colour} hair" for colour in HAIRS},
        lambda f: f.shown_hair,
        lambda f: f.hair_style != "bald" and not 51 < f.age < 63,
    ),
}


@dataclass(frozen=True)
class Known:
    """Pictures of the test split whose factors are known.

    Attributes:
        key: number -> key of an item of the training split.
        at: number -> what a test picture shows.
        render: its picture, uint8 HWC, first of what is returned.
        visible: its measured factors -> whether the picture shows them.
    """

    key: Callable[[int], str]
    at: Callable[[int], Any]
    render: Callable[[Any], tuple[Any, Any]]
    visible: Callable[[Any], Mapping[str, bool]]

    def pictures(self, shown: Sequence[Any]) -> Tensor:
        """Return pictures (N, 3, 64, 64) in [-1, 1]."""
        return torch.stack([image_tensor(self.render(one)[0]) for one in shown])


def _animals(kinds: Sequence[str]) -> Known:
    """Return animals of some kinds in turn."""
    return Known(
        lambda k: f"animals/train/{kinds[k % len(kinds)]}/{k // len(kinds):06d}",
        lambda k: animals.animal_at("test", k // len(kinds), kinds[k % len(kinds)]),
        animals.render,
        lambda animal: dict.fromkeys(animals.measured(animal), True),
    )


FACES = Known(lambda k: f"faces/train/{k:06d}", lambda k: face_at("test", k), render, visible)
KNOWN: Mapping[str, Known] = {
    "faces": FACES,
    "animals": _animals(animals.KINDS),
    **{kind: _animals([kind]) for kind in animals.KINDS},
    "styles": Known(
        lambda k: styled.key_of("train", k, styled.STYLES[k % len(styled.STYLES)]),
        lambda k: styled.styled_at("test", k, styled.STYLES[k % len(styled.STYLES)]),
        styled.render,
        styled.visible,
    ),
}


def pictures(faces: list[Face]) -> Tensor:
    """Render faces as (N, 3, 64, 64) in [-1, 1]."""
    return FACES.pictures(faces)


@torch.no_grad()
def diffusion_figures(
    backbone: PixelBackbone, oracle: Oracle, known: Known = FACES, *, images: int = 16, samples: int = 256, steps: int = 50
) -> dict[str, Any]:
    """Return reconstruction PSNR of test pictures, the share of confident samples, their Frechet distance beside a real one."""
    levels = backbone.schedule.levels(steps)
    x0 = known.pictures([known.at(k) for k in range(images)])
    made = torch.cat([_samples(backbone, range(first, min(first + BATCH, samples)), steps) for first in range(0, samples, BATCH)])
    halves = (range(samples), range(samples, 2 * samples))
    real, other = (oracle.features(known.pictures([known.at(k) for k in numbers])) for numbers in halves)
    return {
        "reconstruction_psnr": _rebuilt(backbone, x0, levels, DDIM(query="source")),
        "fixed_point_psnr": _rebuilt(backbone, x0, levels, FixedPoint(refinements=3)),
        "confident_samples": round((confidence(oracle, made) >= CONFIDENT).float().mean().item(), 3),
        "frechet_samples": round(frechet(oracle.features(made), real), 3),
        "frechet_real": round(frechet(other, real), 3),
        "steps_of_figures": steps,
    }


def confidence(oracle: Oracle, images: Tensor) -> Tensor:
    """Return (B,): the oracle's largest class probability, averaged over the categorical factors."""
    logits = oracle.logits(images)
    return torch.stack([logits[name].float().softmax(1).amax(1) for name in oracle.categorical]).mean(0)


def _samples(backbone: PixelBackbone, numbers: range, steps: int) -> Tensor:
    noise = batch_noise(backbone.sample_shape, [f"figures/{k}" for k in numbers], seed=0, purpose="sample")
    return sample(backbone, noise, backbone.schedule.levels(steps)).clamp(-1, 1)


def _rebuilt(backbone: PixelBackbone, x0: Tensor, levels: Any, inverter: Inverter) -> float:
    parts = [sample(backbone, **replay(inverter.invert(backbone, part, levels))).clamp(-1, 1) for part in x0.split(BATCH)]
    return round(psnr(torch.cat(parts), x0).mean().item(), 2)


@torch.no_grad()
def clip_figures(clip: ClipEncoder, *, images: int = 512) -> dict[str, Any]:
    """Return zero-shot accuracies, and the cosine between image and text directions of true counterfactuals."""
    faces = [face_at("test", k) for k in range(images)]
    seen = torch.cat([clip.image(part) for part in pictures(faces).split(64)])
    figures: dict[str, Any] = {}
    for name, (prompts, value, clear) in PROMPTS.items():
        best = (seen @ clip.text(list(prompts.values())).T).argmax(1).tolist()
        right = [list(prompts)[index] == value(face) for index, face in zip(best, faces, strict=True) if clear(face)]
        figures[f"zero-shot {name}"] = round(sum(right) / len(right), 4)
    for name in ("smiling", "angry", "old", "with glasses"):
        chosen = [face_at("test", k) for k in sources(EDITS[name], "test", 128)]
        move = clip.image(pictures([counterfactual(face, name) for face in chosen])) - clip.image(pictures(chosen))
        way = clip.text([EDITS[name].prompt]) - clip.text([SOURCE_PROMPT])
        figures[f"direction {name}"] = round(F.cosine_similarity(move, way).mean().item(), 3)
    return figures


@torch.no_grad()
def oracle_figures(
    oracle: Oracle, backbone: PixelBackbone | None, known: Known = FACES, *, images: int = 512, rebuilt: int = 256
) -> dict[str, Any]:
    """Return the share of test pictures read rightly per visible factor: the worst factor, clean and reconstructed."""
    shown = [known.at(k) for k in range(images)]
    x0 = known.pictures(shown)
    figures: dict[str, Any] = named("clean", _accuracy(oracle, x0, shown, known))
    if backbone is not None:
        levels = backbone.schedule.levels(50)
        parts = [
            sample(backbone, **replay(DDIM(query="source").invert(backbone, part, levels))) for part in x0[:rebuilt].split(BATCH)
        ]
        figures |= named("reconstructed", _accuracy(oracle, torch.cat(parts).clamp(-1, 1), shown[:rebuilt], known))
    return figures


def _accuracy(oracle: Oracle, images: Tensor, shown: Sequence[Any], known: Known) -> dict[str, float]:
    right = oracle.agreement(oracle.read(images), oracle.truth(shown))
    seen = {name: torch.tensor([known.visible(one)[name] for one in shown]) for name in right}
    return {name: round(hits[seen[name]].float().mean().item(), 4) for name, hits in right.items()}


def named(kind: str, accuracy: Mapping[str, float]) -> dict[str, Any]:
    worst = min(accuracy, key=lambda name: accuracy[name])
    return {f"{kind} worst": f"{worst} {accuracy[worst]}", f"{kind} accuracy": dict(accuracy)}


def record(path: str, figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write figures into the card of a model's folder and return them."""
    card = resolve(path) / "card.json"
    known = json.loads(card.read_text()) if card.exists() else {}
    draft = Path(f"{card}.part")
    draft.write_text(json.dumps({**known, "figures": {**known.get("figures", {}), **figures}}, indent=2) + "\n")
    draft.replace(card)
    return figures
