"""A CLIP for both domains of the toy world, faces and scenes; its towers also serve alone, as text and as image encoders.

The same contrastive training as for faces (`faces`): the sigmoid loss (Zhai et al. 2023) where a caption is a positive of every
picture that it is TRUE of, counterfactual pairs whose pictures must move as their captions do, and classes that warm the vision
tower up: factors of the whole and of an object alone from its pooled token, what stands where from its patches. One term more
is for the text tower, which diffusion models read: an instruction must fit the pair of pictures that it led from one to the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.attention import prepare_on_cpu
from editkit.backbones.clip import load_clip
from editkit.data.items import collate
from editkit.data.scene_classes import OF_THINGS, OF_WHOLES, UNSEEN, cell_classes, class_cost, whole_classes
from editkit.data.toyworld import captions as of_faces
from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.faces import Face
from editkit.data.toyworld.scenes import captions as of_scenes
from editkit.data.toyworld.scenes.factors import Scene
from editkit.data.toyworld.scenes.world import caption_at, dialog_at, edit_at, thing_captions_at
from editkit.data.world_pairs import WorldPairs
from editkit.losses.contrast import alike, info_nce
from editkit.methods.foundation.clip.base import ClipTraining, augmented
from editkit.methods.foundation.clip.faces import FACTORS, corpus, factor_loss
from editkit.training.figures import clip_figures, record
from editkit.training.scene_figures import clip_scene_figures


class SceneClip(ClipTraining):
    """Train a CLIPModel from scratch on captioned toy faces, scenes and single objects.

    Args:
        width, layers: of the vision tower.
        text_width, text_layers: of the text tower; a diffusion model reads `text_width` numbers a token.
        patch, image_size, dim, max_length, init_from: see `ClipTraining`.
        terms: weights of the terms factors, cells, contrast, direction, instruction.
        weights: folder that the task `measure` reads and whose card it completes.
    """

    unused_parameters = True  # a batch may be without faces or without scenes

    def __init__(
        self,
        *,
        width: int = 192,
        layers: int = 4,
        text_width: int = 128,
        text_layers: int = 4,
        patch: int = 8,
        image_size: int = 64,
        dim: int = 128,
        max_length: int = 40,
        init_from: str | None = None,
        terms: Mapping[str, float],
        weights: str = "editkit:toy-scene-clip",
        optimizer: Any = None,
        scheduler: Any = None,
    ):
        super().__init__(
            width=width,
            layers=layers,
            text_width=text_width,
            text_layers=text_layers,
            patch=patch,
            image_size=image_size,
            dim=dim,
            max_length=max_length,
            texts=world_corpus,
            vocabulary=1536,  # enough to keep every word of the corpus whole
            init_from=init_from,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.terms, self.weights = dict(terms), weights
        self.side = image_size // patch
        self.face_head = nn.Linear(width, sum(len(values) for values in FACTORS.values()))
        self.whole_head = nn.Linear(width, sum(len(values) for values in OF_WHOLES.values()))
        self.thing_head = nn.Linear(width, sum(len(values) for values in OF_THINGS.values()))
        self.cell_head = nn.Linear(width, 1 + sum(len(values) for values in OF_THINGS.values()))
        self.change_head = nn.Linear(2 * dim, dim)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        prepare_on_cpu(self.clip)
        shown = [pair[0] for pair in batch["shown"]] + [pair[1] for pair in batch["shown"]]
        hidden = [pair[0] for pair in batch["hidden"]] + [pair[1] for pair in batch["hidden"]]
        captions = [caption for of_pair in batch["captions"] for caption in of_pair]
        told = [pair[0] for pair in batch["told"]] + [pair[1] for pair in batch["told"]]
        instructed = [k for k, text in enumerate(batch["instruction"]) if text]
        captions, count = [*told, *captions], len(batch["shown"])
        pooled, patches, seen = self._see(augmented(torch.cat([batch["image"], batch["other"]])))
        words = self._read([caption.text for caption in captions] + [batch["instruction"][k] for k in instructed])
        spoken, asked = words.split([len(captions), len(instructed)])
        instances = torch.cat([batch["instances"][:, 0], batch["instances"][:, 1]])
        with torch.autocast(seen.device.type, enabled=False):
            true, clear = (torch.from_numpy(table).to(seen.device) for table in truth(captions, shown, hidden))
            differ = [k for k in range(count) if told[k].text != told[count + k].text]
            ways, moves = spoken[count : 2 * count] - spoken[:count], seen[count:] - seen[:count]
            losses = {
                "factors": self._factors(pooled, shown) + self._things(pooled, shown, hidden),
                "cells": self._cells(patches, shown, instances),
                "contrast": self._sigmoid(spoken, seen, true, clear),
                "direction": matched(moves[differ], ways[differ], [batch["change"][k] for k in differ]),
                "instruction": matched(
                    self.change_head(torch.cat([seen[:count], seen[count:]], dim=1))[instructed],
                    asked,
                    [batch["change"][k] for k in instructed],
                ),
            }
        return {name: self.terms[name] * value for name, value in losses.items()}

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pooled token (B, W), the patches (B, side x side, W) and the embedding (B, D) of images."""
        output = self.clip.vision_model(images)
        pooled = output.pooler_output
        embedding = F.normalize(self.clip.visual_projection(pooled).float(), dim=1)
        return pooled.float(), output.last_hidden_state[:, 1:].float(), embedding

    def _factors(self, pooled: Tensor, shown: Sequence[Face | Scene]) -> Tensor:
        """Return the cost of reading faces' and scenes' factors from the pooled token, by their share of the batch."""
        faces, scenes = by_domain(shown)
        cost = pooled.sum() * 0
        if faces:
            cost = cost + len(faces) * factor_loss(self.face_head(pooled[faces]), [shown[k] for k in faces])
        if scenes:
            classes = whole_classes([shown[k] for k in scenes])
            parts = self.whole_head(pooled[scenes]).split([len(values) for values in OF_WHOLES.values()], dim=1)
            costs = [class_cost(part, classes[name]) for name, part in zip(OF_WHOLES, parts, strict=True)]
            cost = cost + len(scenes) * torch.stack(costs).mean()
        return cost / len(shown)

    def _things(self, pooled: Tensor, shown: Sequence[Face | Scene], hidden: Sequence[frozenset[str]]) -> Tensor:
        """Return the cost of reading from the pooled token what the object of pictures of a single one is."""
        alone = [k for k in by_domain(shown)[1] if len(shown[k].things) == 1]
        parts = self.thing_head(pooled[alone]).split([len(values) for values in OF_THINGS.values()], dim=1)
        told = [(vars(shown[k].things[0]), hidden[k]) for k in alone]
        costs = []
        for (name, values), part in zip(OF_THINGS.items(), parts, strict=True):
            classes = [UNSEEN if name in lost else values.index(thing[name]) for thing, lost in told]
            costs.append(class_cost(part, torch.tensor(classes, dtype=torch.long)))
        return torch.stack(costs).mean()

    def _cells(self, patches: Tensor, shown: Sequence[Face | Scene], instances: Tensor) -> Tensor:
        """Return the cost of naming what the patches of scenes show."""
        scenes = by_domain(shown)[1]
        if not scenes:
            return patches.sum() * 0
        classes = cell_classes([shown[k] for k in scenes], instances[scenes], self.side)
        sizes = [len(values) + (name == "shape") for name, values in OF_THINGS.items()]
        parts = self.cell_head(patches[scenes]).split(sizes, dim=2)
        costs = [class_cost(part.flatten(0, 1), classes[name].flatten()) for name, part in zip(OF_THINGS, parts, strict=True)]
        return torch.stack(costs).mean()

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": self._measure}

    def _measure(self, data: Any) -> Mapping[str, Any]:
        clip = load_clip(self.weights)
        return record(self.weights, {**clip_figures(clip), **clip_scene_figures(clip)})

    def dummy_batch(self) -> dict[str, Any]:
        pairs = WorldPairs("train", 4, self.clip.config.vision_config.image_size)
        rng = np.random.default_rng(0)
        made = [pairs.face_pair(0, rng), *(pairs.scene_pair(k, rng, crop=k == 3) for k in (1, 2, 3))]
        return self.transfer_batch_to_device(collate(made), self.device, 0)


def by_domain(shown: Sequence[Face | Scene]) -> tuple[list[int], list[int]]:
    """Return which are faces, and which are scenes."""
    faces = [k for k, one in enumerate(shown) if isinstance(one, Face)]
    return faces, [k for k, one in enumerate(shown) if not isinstance(one, Face)]


def truth(
    captions: Sequence[Caption], shown: Sequence[Face | Scene], hidden: Sequence[frozenset[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return bool (N, M) twice: which captions are true of which pictures, and of which that can be seen.

    A caption of one domain is false of all pictures of the other.
    """
    faces, scenes = by_domain(shown)
    of_scene = [k for k, caption in enumerate(captions) if speaks_of_scenes(caption)]
    of_face = [k for k, caption in enumerate(captions) if not speaks_of_scenes(caption)]
    true, clear = (np.full((len(captions), len(shown)), value) for value in (False, True))
    texts, pictures = [captions[k] for k in of_face], [shown[k] for k in faces]
    if texts and pictures:
        true[np.ix_(of_face, faces)] = of_faces.holds_matrix(texts, pictures)
        clear[np.ix_(of_face, faces)] = ~of_faces.unclear_pairs(texts, pictures)
    texts, pictures = [captions[k] for k in of_scene], [shown[k] for k in scenes]
    true[np.ix_(of_scene, scenes)] = of_scenes.holds_matrix(texts, pictures)
    lost = [hidden[k] for k in scenes]
    clear[np.ix_(of_scene, scenes)] = ~of_scenes.unclear_pairs(texts, pictures, lost)
    return true, clear


def speaks_of_scenes(caption: Caption) -> bool:
    """Say whether a caption is of a scene: it claims something of objects, or of a factor that only scenes have."""
    return not caption.claims.keys().isdisjoint({"things", *OF_WHOLES})


def matched(changes: Tensor, texts: Tensor, names: list[str]) -> Tensor:
    """Let each change (B, D) point along its own text (B, D), and along no other that names another change."""
    if not names:
        return changes.sum() * 0 + texts.sum() * 0
    own = F.cosine_similarity(changes, texts)
    return info_nce(changes, texts, alike(names)) + (1 - own).mean()


def world_corpus(count: int = 1500) -> list[str]:
    """Return texts in the words of both domains: captions, descriptions of objects, instructions, dialogs."""
    texts = corpus(count)
    for index in range(count):
        texts += [caption_at("train", index).text, *(one.text for one in thing_captions_at("train", index))]
        texts.append(edit_at("train", index).instruction)
    talks = (turns for index in range(count // 20) for turns in dialog_at("train", index))
    return texts + [text for talk in talks for _, text in talk.turns]
