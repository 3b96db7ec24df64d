"""Toy faces in counterfactual pairs: a face, the same face after one named edit, and captions of both.

What a contrastive model needs to learn which words belong to which change: all else in a pair is equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from editkit.data.items import image_tensor
from editkit.data.module import DataModule
from editkit.data.toyworld.captions import caption
from editkit.data.toyworld.faces import Face, render
from editkit.data.toyworld.world import EDITS, counterfactual, face_at


class FacePairs(Dataset):
    """Item k: {image, other (3, H, W) in [-1, 1], face, other_face, edit, captions (two), key}.

    Args:
        split: a split of the toy world.
        size: side of the images in pixels.
        count: faces in the data set.
        seed: decides the edits and the captions; those of one face differ from draw to draw.
        expressions: share of the pairs that differ in the expression, the hardest change to see.
        wrinkles: share of the pairs that grow old with hair that is grey already. Grey hair is the larger part of an old
            face, and a model that saw nothing else would ask for no more. All other pairs are any edit.
    """

    def __init__(self, split: str, size: int, count: int, seed: int = 0, expressions: float = 0.0, wrinkles: float = 0.0) -> None:
        self.split, self.size, self.count, self.seed = split, size, count, seed
        self.expressions, self.wrinkles = expressions, wrinkles

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, int(torch.randint(2**31, ()))])  # a state that training saves and restores
        face, edit = self._drawn(face_at(self.split, index), rng)
        other = counterfactual(face, edit)
        return {
            "key": f"faces/{self.split}/{index:06d}",
            "image": image_tensor(render(face, self.size)[0]),
            "other": image_tensor(render(other, self.size)[0]),
            "face": face,
            "other_face": other,
            "edit": edit,
            "captions": (caption(face, rng), caption(other, rng)),
        }

    def _drawn(self, face: Face, rng: np.random.Generator) -> tuple[Face, str]:
        """Return a face and the name of the edit that makes the other one of it."""
        kind = rng.random()
        if self.expressions <= kind < self.expressions + self.wrinkles and EDITS["old"].eligible(face):
            return replace(face, hair_colour="grey"), "old"
        eligible = [edit for edit in EDITS.values() if edit.eligible(face)]
        if kind < self.expressions:
            eligible = [edit for edit in eligible if "expression" in edit.target]
        return face, eligible[int(rng.integers(len(eligible)))].name


class FacePairsData(DataModule):
    """Data module over FacePairs.

    Args:
        size: side of the images in pixels.
        train, validation, test: number of faces in each split.
        expressions, wrinkles: shares of the training pairs, see FacePairs.
    """

    def __init__(
        self,
        size: int = 64,
        train: int = 40_000,
        validation: int = 512,
        test: int = 512,
        expressions: float = 0.0,
        wrinkles: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.counts = size, {"train": train, "validation": validation, "test": test}
        self.shares = {"expressions": expressions, "wrinkles": wrinkles}

    def dataset(self, split: str) -> FacePairs:
        return FacePairs(split, self.size, self.counts[split], **(self.shares if split == "train" else {}))


def face_named(key: str) -> Face:
    """Return the toy face of an item's key, such as "faces/train/000012"."""
    _, split, index = key.split("/")
    return face_at(split, int(index))
