"""A CLIP for the toy world: small, but in CLIP's own layout, and trained so that its gradients can guide an edit (`robust`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.clip import load_clip
from editkit.data.items import collate
from editkit.data.pairs import FacePairs
from editkit.data.scene_classes import class_cost
from editkit.data.toyworld.captions import PLAIN, TEMPLATES, caption, holds_matrix, unclear_pairs
from editkit.data.toyworld.faces import CATEGORICAL, Face
from editkit.data.toyworld.world import EDITS, face_at
from editkit.losses.templates import TEMPLATES as GUIDANCE_TEMPLATES
from editkit.losses.templates import fill
from editkit.methods.foundation.clip.robust import RobustClip, Ways, drawn_template
from editkit.training.figures import clip_figures, record

FACTORS = dict(CATEGORICAL) | {"age": ("young", "grown", "old")}
EMPHASIS = {"expression": 5.0, "age": 2.0}  # few pixels, but what most edits are about


class ToyClip(RobustClip):
    """Train a CLIPModel on captioned toy faces in counterfactual pairs.

    Args:
        width, layers, patch, image_size, dim, max_length, init_from, colour_jitter, attack, terms: see `RobustClip`.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        layers: int = 4,
        patch: int = 8,
        image_size: int = 64,
        dim: int = 128,
        max_length: int = 40,
        colour_jitter: float = 0.25,
        attack: float = 6.0,
        init_from: str | None = None,
        terms: Mapping[str, float],
        weights: str = "editkit:toy-clip",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(
            width=width,
            layers=layers,
            patch=patch,
            image_size=image_size,
            dim=dim,
            max_length=max_length,
            texts=corpus,
            vocabulary=1024,
            init_from=init_from,
            classes=sum(len(values) for values in FACTORS.values()),
            colour_jitter=colour_jitter,
            attack=attack,
            terms=terms,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.weights = weights

    def _factors(self, pooled: Tensor, faces: Sequence[Face]) -> Tensor:
        return factor_loss(self.factor_head(pooled), faces)

    def _contrast(self, words: Tensor, seen: Tensor, captions: Sequence[Any], faces: Sequence[Face]) -> Tensor:
        true = torch.from_numpy(holds_matrix(captions, faces)).to(words.device)
        clear = ~torch.from_numpy(unclear_pairs(captions, faces)).to(words.device)
        return self._sigmoid(words, seen, true, clear)

    def _ways(self, batch: Mapping[str, Any]) -> Ways:
        """From the source prompt to the prompt of every named edit, all in one template."""
        names = list(EDITS)
        template = drawn_template()
        source, *targets = self._read([fill(template, text) for text in ("a face", *(EDITS[name].prompt for name in names))])
        ways = F.normalize(torch.stack(targets) - source, dim=1)
        return Ways(ways, ways.expand(len(batch["edit"]), -1, -1), [names.index(name) for name in batch["edit"]])

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": lambda data: record(self.weights, clip_figures(load_clip(self.weights)))}

    def dummy_batch(self) -> dict[str, Any]:
        data = FacePairs("train", self.clip.config.vision_config.image_size, 2)
        return collate([data[0], data[1]])


def factor_classes(name: str, faces: Sequence[Face]) -> Tensor:
    """Return the class (B,) of each face for one of FACTORS."""
    if name == "age":  # wrinkles start at 42 and are complete at 72
        return torch.tensor([0 if face.age < 47 else 1 if face.age < 60 else 2 for face in faces])
    return torch.tensor([CATEGORICAL[name].index(getattr(face, name)) for face in faces])


def factor_loss(
    logits: Tensor,
    faces: Sequence[Any],
    factors: Mapping[str, tuple] = FACTORS,
    classes: Callable[[str, Sequence[Any]], Tensor] = factor_classes,
) -> Tensor:
    """Return the cross entropy of the logits (B, K) of all factors, one after the other; classes may be UNSEEN."""
    parts = logits.split([len(values) for values in factors.values()], dim=1)
    costs = {name: class_cost(part, classes(name, faces)) for name, part in zip(factors, parts, strict=True)}
    return torch.stack([EMPHASIS.get(name, 1.0) * cost for name, cost in costs.items()]).sum() / len(factors)


def corpus(count: int = 8000) -> list[str]:
    """Return texts in the words that captions, edits and the losses' prompt templates use."""
    rng = np.random.default_rng(0)
    texts = [caption(face_at("train", index), rng).text for index in range(count)]
    nouns = [edit.prompt for edit in EDITS.values()] + [plain.text for plain in PLAIN]
    texts += [template.replace("*", noun) for template in GUIDANCE_TEMPLATES for noun in nouns]
    return texts + [template.format("a face") for template in TEMPLATES]
