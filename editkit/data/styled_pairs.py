"""Toy faces in counterfactual pairs: one face twice, in plain and in a style or in two styles, and captions of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from editkit.data.items import image_tensor
from editkit.data.module import DataModule
from editkit.data.toyworld.styled import STYLES, key_of, render, styled_at
from editkit.data.toyworld.styled_captions import caption


class StyledPairs(Dataset):
    """Item k: {image, other (3, H, W) in [-1, 1], face, other_face (`StyledFace`), captions (two), key}.

    Args:
        split: a split of the toy world.
        size: side of the images in pixels.
        count: faces in the data set.
        seed: decides the styles and the captions; those of one face differ from draw to draw.
        styled: share of the pairs whose first picture is in a style too, another one.
    """

    def __init__(self, split: str, size: int, count: int, seed: int = 0, styled: float = 0.0) -> None:
        self.split, self.size, self.count, self.seed, self.styled = split, size, count, seed, styled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, int(torch.randint(2**31, ()))])  # a state that training saves and restores
        first, second = (str(style) for style in rng.choice([style for style in STYLES if style != "plain"], 2, replace=False))
        if rng.random() >= self.styled:
            first = "plain"
        face, other = (styled_at(self.split, index, style) for style in (first, second))
        return {
            "key": key_of(self.split, index, first),
            "image": image_tensor(render(face, self.size)[0]),
            "other": image_tensor(render(other, self.size)[0]),
            "face": face,
            "other_face": other,
            "captions": (caption(face, rng), caption(other, rng)),
        }


class StyledPairsData(DataModule):
    """Data module over StyledPairs.

    Args:
        size: side of the images in pixels.
        train, validation, test: number of faces in each split.
        styled: share of the pairs that are in two styles, see StyledPairs.
    """

    def __init__(self, size: int = 64, train: int = 40_000, validation: int = 512, test: int = 512, styled: float = 0.25) -> None:
        super().__init__()
        self.size, self.counts, self.styled = size, {"train": train, "validation": validation, "test": test}, styled

    def dataset(self, split: str) -> StyledPairs:
        return StyledPairs(split, self.size, self.counts[split], styled=self.styled)
