"""Training of the two small feature networks: one that knows a person, one that sees differences as people do.

Identity: two pictures of one person (expression, glasses, beard, age and place changed) must embed alike, different people
apart (the N-pair loss, Sohn 2016). Perceptual: a VGG-style stack learns to read the factors; its features then weigh what
matters in a face more than what does not (Johnson et al. 2016 use a classifier's features in the same way).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.features import FeatureNet, PerceptualNet
from editkit.backbones.identity import IdentityNet
from editkit.data.items import image_tensor
from editkit.data.pairs import face_named
from editkit.data.toyworld.faces import CATEGORICAL, CONTINUOUS, Face, draw_face, edited, render
from editkit.training.folder import FolderMethod

CHANGEABLE = ("expression", "expression_amount", "age", "glasses", "x", "y", "background", "tint", "shirt")
TEMPERATURE = 0.1


class _FeatureTraining(FolderMethod):
    """What the two trainings share: one network, saved in its own folder layout."""

    net: FeatureNet

    def save(self, folder: Path) -> None:
        self.net.save(folder)

    def dummy_batch(self) -> dict[str, Any]:
        keys = [f"faces/train/{k:06d}" for k in range(4)]
        images = [image_tensor(render(face_named(key))[0]) for key in keys]
        return {"image": torch.stack(images).to(self.device), "key": keys}


class Identity(_FeatureTraining):
    """Train IdentityNet on pairs of pictures of the same person."""

    def __init__(self, *, optimizer: Any = None, scheduler: Any = None):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.net = IdentityNet()

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"identity": self.net.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        others = torch.stack([image_tensor(render(same_person(face_named(key), _generator()))[0]) for key in batch["key"]])
        noisy = [_noisy(images) for images in (batch["image"], others.to(batch["image"]))]
        first, second = (self.net(images).float() for images in noisy)
        own = torch.arange(len(first), device=first.device)
        similarity = first @ second.T / TEMPERATURE
        return {"identity": (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2}


class Perceptual(_FeatureTraining):
    """Train PerceptualNet to read the factors of a face from its last stage."""

    def __init__(self, *, optimizer: Any = None, scheduler: Any = None):
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.net = PerceptualNet()
        self.sizes = [len(values) for values in CATEGORICAL.values()] + [len(CONTINUOUS)]
        width = self.net.config["channels"][-1]
        self.head = nn.Linear(width * 16, sum(self.sizes))

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"perceptual": self.parameters()}

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        faces = [face_named(key) for key in batch["key"]]
        deep = F.adaptive_avg_pool2d(self.net(_noisy(batch["image"]))[-1], 4).flatten(1)
        *classes, values = self.head(deep).float().split(self.sizes, dim=1)
        costs = [
            F.cross_entropy(logits, torch.tensor([options.index(getattr(face, name)) for face in faces], device=logits.device))
            for logits, (name, options) in zip(classes, CATEGORICAL.items(), strict=True)
        ]
        spans = [[(getattr(face, name) - low) / (high - low) for name, (low, high) in CONTINUOUS.items()] for face in faces]
        return {"classes": torch.stack(costs).mean(), "values": F.mse_loss(values, torch.tensor(spans, device=values.device)) * 4}


def same_person(face: Face, rng: np.random.Generator) -> Face:
    """Return the same person at another moment: all that can change within a life is drawn anew."""
    other = draw_face(rng)
    beard = bool(rng.random() < 0.4) and face.look == "masculine"
    return edited(face, **{name: getattr(other, name) for name in CHANGEABLE}, beard=beard)


def _generator() -> np.random.Generator:
    return np.random.default_rng(int(torch.randint(2**62, ())))


def _noisy(images: Tensor) -> Tensor:
    return images + torch.randn_like(images) * 0.1 * torch.rand(len(images), 1, 1, 1, device=images.device)
