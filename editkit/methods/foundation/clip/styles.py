"""A CLIP of toy faces in styles: the training of `robust`, where what changes in a pair is how the face is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.clip import load_clip
from editkit.data.items import collate
from editkit.data.scene_classes import UNSEEN
from editkit.data.styled_pairs import StyledPairs
from editkit.data.toyworld.captions import Caption, pick
from editkit.data.toyworld.styled import HIDDEN, STYLES, StyledFace, styled_at
from editkit.data.toyworld.styled_captions import caption, told, truth
from editkit.data.toyworld.world import EDITS, SOURCE_PROMPT
from editkit.losses.templates import fill
from editkit.methods.foundation.clip import faces as of_faces
from editkit.methods.foundation.clip.robust import RobustClip, Ways, drawn_template
from editkit.training.figures import clip_figures, record
from editkit.training.style_figures import clip_style_figures

FACTORS: Mapping[str, tuple] = {"style": STYLES, **of_faces.FACTORS}
# For each style the others, which a face drawn so could be redrawn in.
OTHERS = torch.tensor([[k for k in range(len(STYLES)) if k != own] for own in range(len(STYLES))])


class StyleClip(RobustClip):
    """Train a CLIPModel on captioned toy faces in styles, in counterfactual pairs.

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
        attack: float = 8.0,
        init_from: str | None = "editkit:toy-clip",
        terms: Mapping[str, float],
        weights: str = "editkit:toy-style-clip",
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
            texts=styled_corpus,
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

    def _factors(self, pooled: Tensor, faces: Sequence[StyledFace]) -> Tensor:
        return of_faces.factor_loss(self.factor_head(pooled), faces, FACTORS, factor_classes)

    def _contrast(self, words: Tensor, seen: Tensor, captions: Sequence[Caption], faces: Sequence[StyledFace]) -> Tensor:
        true, clear = (torch.from_numpy(table).to(words.device) for table in truth(captions, faces))
        return self._sigmoid(words, seen, true, clear)

    def _ways(self, batch: Mapping[str, Any]) -> Ways:
        """From a prompt to that prompt in every style; a face that is in a style already goes from there to all others."""
        words = self._read(prompts(np.random.default_rng(int(torch.randint(2**31, ())))))
        start, goal = (style_classes(batch[name]).to(words.device) for name in ("face", "other_face"))
        choices = OTHERS.to(words.device)[start]  # (B, E)
        own = (choices == goal[:, None]).int().argmax(1)
        ways = F.normalize(words[choices] - words[start][:, None], dim=2)
        return Ways(F.normalize(words[1:] - words[:1], dim=1), ways, own.tolist())

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {"measure": self._measure}

    def _measure(self, data: Any) -> Mapping[str, Any]:
        clip = load_clip(self.weights)
        return record(self.weights, {**clip_style_figures(clip), **clip_figures(clip)})

    def dummy_batch(self) -> dict[str, Any]:
        data = StyledPairs("train", self.clip.config.vision_config.image_size, 4, styled=0.5)
        return self.transfer_batch_to_device(collate([data[k] for k in range(4)]), self.device, 0)


def style_classes(faces: Sequence[StyledFace]) -> Tensor:
    """Return the position of each face's style in STYLES, (B,)."""
    return torch.tensor([STYLES.index(face.style) for face in faces])


def factor_classes(name: str, faces: Sequence[StyledFace]) -> Tensor:
    """Return the class (B,) of each face for one of FACTORS, UNSEEN where its style hides it."""
    if name == "style":
        return style_classes(faces)
    hidden = torch.tensor([name in HIDDEN.get(face.style, ()) for face in faces])
    return of_faces.factor_classes(name, faces).masked_fill(hidden, UNSEEN)


def prompts(rng: np.random.Generator) -> list[str]:
    """Return one prompt in each of STYLES, half of the time of any face, and a quarter of the time in a template of losses."""
    face = SOURCE_PROMPT if rng.random() < 0.5 else pick(rng, [edit.prompt for edit in EDITS.values()])
    template = drawn_template() if rng.random() < 0.25 else "*"
    return [fill(template, told(face, style, rng)) for style in STYLES]


def styled_corpus(count: int = 4000) -> list[str]:
    """Return texts in the words of `corpus`, and captions in styles."""
    rng = np.random.default_rng(0)
    styled = [caption(styled_at("train", index, STYLES[index % len(STYLES)]), rng).text for index in range(count)]
    return of_faces.corpus(count) + styled
