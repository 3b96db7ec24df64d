"""A CLIP for the toy world: small, but in CLIP's own layout, and trained so that its gradients can guide an edit.

Contrastive image-text training (Radford et al. 2021) with the pairwise sigmoid loss (Zhai et al. 2023), where a caption is
a positive of every image that it is TRUE of. Two terms are ours: counterfactual pairs teach which way an image embedding
moves when one thing changes (the quantity that directional CLIP losses measure), already when it has changed part of the way,
so that a gradient finds it; and neither changes of colour nor attacks (small changes along the gradient, Madry et al. 2018)
may move it along any of those ways: what follows the gradients of a network trained so changes what a person sees
(Santurkar et al. 2019).
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
from editkit.data.pairs import FacePairs
from editkit.data.toyworld.captions import PLAIN, TEMPLATES, caption, holds_matrix, unclear_pairs
from editkit.data.toyworld.faces import CATEGORICAL, Face
from editkit.data.toyworld.world import EDITS, face_at
from editkit.losses.templates import TEMPLATES as GUIDANCE_TEMPLATES
from editkit.methods.foundation.clip.base import ClipTraining, augmented
from editkit.training.figures import clip_figures, record

FACTORS = dict(CATEGORICAL) | {"age": ("young", "grown", "old")}
EMPHASIS = {"expression": 5.0, "age": 2.0}  # few pixels, but what most edits are about


class ToyClip(ClipTraining):
    """Train a CLIPModel from scratch on captioned toy faces.

    Args:
        width, layers: of the vision tower; the text tower has as many heads and one layer less.
        patch: side of a vision patch in pixels.
        image_size: side of the images in pixels.
        dim: width of the joint embedding.
        max_length: longest caption in tokens.
        colour_jitter: size of the changes of brightness, contrast, channel balance and of large stains in the colour term.
        init_from: a CLIP folder whose weights and tokenizer to start from; None starts from scratch.
        attack: longest attack, as the Euclidean length of a change of an image in [-1, 1]; a frown is about 8 long.
        terms: weights of the terms factors, contrast, direction, colour, attack.
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
            text_width=width,
            text_layers=layers - 1,
            patch=patch,
            image_size=image_size,
            dim=dim,
            max_length=max_length,
            texts=corpus,
            vocabulary=1024,
            init_from=init_from,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.terms, self.colour_jitter, self.attack = dict(terms), colour_jitter, attack
        self.weights = weights
        self.factor_head = nn.Linear(width, sum(len(values) for values in FACTORS.values()))

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        prepare_on_cpu(self.clip)
        faces: list[Face] = [*batch["face"], *batch["other_face"]]
        captions = [pair[0] for pair in batch["captions"]] + [pair[1] for pair in batch["captions"]]
        images = torch.cat([batch["image"], batch["other"]])
        jittered = self._recoloured(batch["image"][::2])
        part_way = _part_way(batch["image"][1::2], batch["other"][1::2])
        prompts, guided = self._guided_captions()
        words = self._read([caption.text for caption in captions])
        source, *targets = self._read(prompts)
        ways = F.normalize(torch.stack(targets) - source, dim=1)
        shown = augmented(torch.cat([images, jittered, part_way]))
        attacked = self._attacked(shown[: len(images) : 2], ways.detach())
        pooled, embeddings = self._see(torch.cat([shown, attacked]))
        count = len(batch["face"])
        seen, others, recoloured, between, fooled = embeddings.split([count, count, len(jittered), len(part_way), len(attacked)])
        whole = torch.cat([seen, others])
        moves = torch.cat([others - seen, between - seen[1::2]])
        edits = [guided.index(name) for name in batch["edit"]]
        rows = [*range(2 * count), *range(-len(attacked), 0)]  # what a face was seen as, and what it was attacked to
        faces = [*faces, *faces[::2]]
        with torch.autocast(images.device.type, enabled=False):
            losses = {
                "factors": factor_loss(self.factor_head(pooled[rows]), faces),
                "contrast": self._contrast(words, embeddings[rows], captions, faces),
                "direction": _direction_loss(F.normalize(moves, dim=1), ways, edits + edits[1::2]),
                "colour": _drift(recoloured - seen[::2], ways),
                "attack": _drift(fooled - whole[::2], ways),
            }
        return {name: self.terms[name] * value for name, value in losses.items()}

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.clip.vision_model(images).pooler_output
        return pooled.float(), F.normalize(self.clip.visual_projection(pooled).float(), dim=1)

    def _attacked(self, images: Tensor, ways: Tensor, steps: int = 3) -> Tensor:
        """Return each image (B, 3, H, W) changed a little so that its embedding moves along one of the ways (E, D), at random."""
        device = images.device
        goal = ways[torch.randint(len(ways), (len(images),)).to(device)]
        length = self.attack * torch.rand(len(images), 1, 1, 1, device=device)
        change = _of_length(torch.randn_like(images), length / 4)
        for _ in range(steps):
            change.requires_grad_()
            gain = (self._see(images + change)[1] * goal).sum()
            (slope,) = torch.autograd.grad(gain, change)
            change = change.detach() + _of_length(slope, length / steps)
        return images + change

    def _contrast(self, words: Tensor, seen: Tensor, captions: Sequence[Any], faces: Sequence[Face]) -> Tensor:
        true = torch.from_numpy(holds_matrix(captions, faces)).to(words.device)
        clear = ~torch.from_numpy(unclear_pairs(captions, faces)).to(words.device)
        return self._sigmoid(words, seen, true, clear)

    def _guided_captions(self) -> tuple[list[str], list[str]]:
        """The source prompt and the prompt of every named edit, all in one template, as directional losses use them."""
        names = list(EDITS)
        template = str(np.random.default_rng(int(torch.randint(2**31, ()))).choice(["*", *GUIDANCE_TEMPLATES]))
        return [template.replace("*", text) for text in ("a face", *(EDITS[name].prompt for name in names))], names

    def _recoloured(self, images: Tensor) -> Tensor:
        shape = (len(images), 3, 1, 1)
        change = lambda: (torch.rand(shape, device=images.device) - 0.5) * 2 * self.colour_jitter  # noqa: E731
        common = change().mean(1, keepdim=True)
        stains = F.interpolate(
            self.colour_jitter * torch.randn(*shape[:2], 4, 4, device=images.device), images.shape[-2:], mode="bicubic"
        )
        return (images * (1 + change()) + change() * 0.5 + common + stains).clamp(-1, 1)

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": lambda data: record(self.weights, clip_figures(load_clip(self.weights)))}

    def dummy_batch(self) -> dict[str, Any]:
        data = FacePairs("train", self.clip.config.vision_config.image_size, 2)
        return collate([data[0], data[1]])


def _part_way(images: Tensor, others: Tensor) -> Tensor:
    """Return each image at least three tenths of the way to its other, pixel by pixel, (B, 3, H, W)."""
    return torch.lerp(images, others, 0.3 + 0.7 * torch.rand(len(images), 1, 1, 1, device=images.device))


def _of_length(change: Tensor, length: Tensor) -> Tensor:
    """Return changes of images (B, 3, H, W) scaled to a Euclidean length each, (B, 1, 1, 1)."""
    return change * (length / change.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None])


def _drift(moves: Tensor, ways: Tensor) -> Tensor:
    """Return how far moves (B, D) that mean nothing point along any of the ways (E, D)."""
    return F.relu(F.normalize(moves, dim=1) @ ways.T).square().sum(1).mean()


def _direction_loss(moves: Tensor, ways: Tensor, edits: Sequence[int]) -> Tensor:
    """Let each image move (B, D) point along the way (E, D) of its own edit, and along no other."""
    cosines = moves @ ways.T
    own = torch.tensor(list(edits), device=moves.device)
    return F.cross_entropy(cosines / 0.1, own) + (1 - cosines.gather(1, own[:, None])).mean()


def factor_loss(logits: Tensor, faces: Sequence[Face]) -> Tensor:
    """Return the cross entropy of the logits (B, K) of all FACTORS, one after the other."""
    parts = logits.split([len(values) for values in FACTORS.values()], dim=1)
    costs = {
        name: F.cross_entropy(part, factor_classes(name, faces).to(part.device))
        for name, part in zip(FACTORS, parts, strict=True)
    }
    return torch.stack([EMPHASIS.get(name, 1.0) * cost for name, cost in costs.items()]).sum() / len(FACTORS)


def factor_classes(name: str, faces: Sequence[Face]) -> Tensor:
    """Return the class (B,) of each face for one of FACTORS."""
    if name == "age":  # wrinkles start at 42 and are complete at 72
        return torch.tensor([0 if face.age < 47 else 1 if face.age < 60 else 2 for face in faces])
    return torch.tensor([CATEGORICAL[name].index(getattr(face, name)) for face in faces])


def corpus(count: int = 8000) -> list[str]:
    """Return texts in the words that captions, edits and the losses' prompt templates use."""
    rng = np.random.default_rng(0)
    texts = [caption(face_at("train", index), rng).text for index in range(count)]
    nouns = [edit.prompt for edit in EDITS.values()] + [plain.text for plain in PLAIN]
    texts += [template.replace("*", noun) for template in GUIDANCE_TEMPLATES for noun in nouns]
    return texts + [template.format("a face") for template in TEMPLATES]
