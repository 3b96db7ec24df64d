"""CLIPs whose gradients can guide an edit.

Contrastive image-text training (Radford et al. 2021) with the pairwise sigmoid loss (Zhai et al. 2023), where a caption is
a positive of every image that it is TRUE of. Two terms are ours: counterfactual pairs teach which way an image embedding
moves when one thing changes (the quantity that directional CLIP losses measure), already when it has changed part of the way,
so that a gradient finds it; and neither changes of colour nor attacks (small changes along the gradient, Madry et al. 2018)
may move it along any of those ways: what follows the gradients of a network trained so changes what a person sees
(Santurkar et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.attention import prepare_on_cpu
from editkit.losses.templates import TEMPLATES
from editkit.methods.foundation.clip.base import ClipTraining, augmented


@dataclass(frozen=True)
class Ways:
    """Unit differences of text embeddings, along which edits move images.

    Attributes:
        every: (W, D), what neither colours nor attacks may move an image along.
        choices: (B, E, D), for each pair the ways that it could have gone.
        own: for each pair which of its choices it went.
    """

    every: Tensor
    choices: Tensor
    own: Sequence[int]


class RobustClip(ClipTraining):
    """Base of the trainings; a subclass says what captions are true of, which ways there are and which classes to read.

    Batches hold image, other (B, 3, H, W), face, other_face, and captions: of each pair the two.

    Args:
        width, layers: of the vision tower; the text tower has as many heads and one layer less.
        patch, image_size, dim, max_length, texts, vocabulary, init_from: see `ClipTraining`.
        classes: logits of all factors together that are read from the pooled token.
        colour_jitter: size of the changes of brightness, contrast, channel balance and of large stains in the colour term.
        attack: longest attack, as the Euclidean length of a change of an image in [-1, 1]; a frown is about 8 long.
        terms: weights of the terms factors, contrast, direction, colour, attack.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        patch: int,
        image_size: int,
        dim: int,
        max_length: int,
        texts: Callable[[], Iterable[str]],
        vocabulary: int,
        init_from: str | None,
        classes: int,
        colour_jitter: float,
        attack: float,
        terms: Mapping[str, float],
        optimizer: Any,
        scheduler: Any,
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
            texts=texts,
            vocabulary=vocabulary,
            init_from=init_from,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.terms, self.colour_jitter, self.attack = dict(terms), colour_jitter, attack
        self.factor_head = nn.Linear(width, classes)

    def _ways(self, batch: Mapping[str, Any]) -> Ways:
        """Return the ways of a batch, by texts in one template, as directional losses use them."""
        raise NotImplementedError(f"{type(self).__name__}._ways")

    def _contrast(self, words: Tensor, seen: Tensor, captions: Sequence[Any], faces: Sequence[Any]) -> Tensor:
        """Return the contrast of captions (N, D) and faces (M, D)."""
        raise NotImplementedError(f"{type(self).__name__}._contrast")

    def _factors(self, pooled: Tensor, faces: Sequence[Any]) -> Tensor:
        """Return the cost of reading the faces' factors from the pooled token (M, W)."""
        raise NotImplementedError(f"{type(self).__name__}._factors")

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        prepare_on_cpu(self.clip)
        faces = [*batch["face"], *batch["other_face"]]
        captions = [pair[0] for pair in batch["captions"]] + [pair[1] for pair in batch["captions"]]
        images = torch.cat([batch["image"], batch["other"]])
        jittered = self._recoloured(batch["image"][::2])
        between = part_way(batch["image"][1::2], batch["other"][1::2])
        words = self._read([caption.text for caption in captions])
        ways = self._ways(batch)
        shown = augmented(torch.cat([images, jittered, between]))
        attacked = self._attacked(shown[: len(images) : 2], ways.every.detach())
        pooled, embeddings = self._see(torch.cat([shown, attacked]))
        count = len(batch["face"])
        seen, others, recoloured, half, fooled = embeddings.split([count, count, len(jittered), len(between), len(attacked)])
        moves = F.normalize(torch.cat([others - seen, half - seen[1::2]]), dim=1)
        rows = [*range(2 * count), *range(-len(attacked), 0)]  # what a face was seen as, and what it was attacked to
        faces = [*faces, *faces[::2]]
        with torch.autocast(images.device.type, enabled=False):
            losses = {
                "factors": self._factors(pooled[rows], faces),
                "contrast": self._contrast(words, embeddings[rows], captions, faces),
                "direction": direction_loss(moves, torch.cat([ways.choices, ways.choices[1::2]]), [*ways.own, *ways.own[1::2]]),
                "colour": drift(recoloured - seen[::2], ways.every),
                "attack": drift(fooled - torch.cat([seen, others])[::2], ways.every),
            }
        return {name: self.terms[name] * value for name, value in losses.items()}

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.clip.vision_model(images).pooler_output
        return pooled.float(), F.normalize(self.clip.visual_projection(pooled).float(), dim=1)

    def _attacked(self, images: Tensor, ways: Tensor, steps: int = 3) -> Tensor:
        """Return each image (B, 3, H, W) changed a little so that its embedding moves along one of the ways (W, D), at random."""
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

    def _recoloured(self, images: Tensor) -> Tensor:
        shape = (len(images), 3, 1, 1)
        change = lambda: (torch.rand(shape, device=images.device) - 0.5) * 2 * self.colour_jitter  # noqa: E731
        common = change().mean(1, keepdim=True)
        stains = F.interpolate(
            self.colour_jitter * torch.randn(*shape[:2], 4, 4, device=images.device), images.shape[-2:], mode="bicubic"
        )
        return (images * (1 + change()) + change() * 0.5 + common + stains).clamp(-1, 1)


def drawn_template() -> str:
    """Draw the bare text or one of the templates of directional losses, by torch's random numbers."""
    return str(np.random.default_rng(int(torch.randint(2**31, ()))).choice(["*", *TEMPLATES]))


def part_way(images: Tensor, others: Tensor) -> Tensor:
    """Return each image at least three tenths of the way to its other, pixel by pixel, (B, 3, H, W)."""
    return torch.lerp(images, others, 0.3 + 0.7 * torch.rand(len(images), 1, 1, 1, device=images.device))


def _of_length(change: Tensor, length: Tensor) -> Tensor:
    """Return changes of images (B, 3, H, W) scaled to a Euclidean length each, (B, 1, 1, 1)."""
    return change * (length / change.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None])


def drift(moves: Tensor, ways: Tensor) -> Tensor:
    """Return how far moves (B, D) that mean nothing point along any of the ways (W, D)."""
    return F.relu(F.normalize(moves, dim=1) @ ways.T).square().sum(1).mean()


def direction_loss(moves: Tensor, choices: Tensor, own: Sequence[int]) -> Tensor:
    """Let each unit image move (B, D) point along its own one of its ways (B, E, D), and along no other."""
    cosines = torch.einsum("bd,bed->be", moves, choices)
    goes = torch.tensor(list(own), device=moves.device)
    return F.cross_entropy(cosines / 0.1, goes) + (1 - cosines.gather(1, goes[:, None])).mean()
