"""The toy world's faces as a data module: drawn while training runs, about 1 ms a picture."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.rendered import Rendered, RenderedDataset
from editkit.data.toyworld.claims import measured
from editkit.data.toyworld.faces import render, visible
from editkit.data.toyworld.world import caption_at, face_at


class FaceDataset(RenderedDataset):
    """The first `count` faces of a split.

    Items hold image, key, index, caption, factors, visible and labels (see `editkit.data.items`); the face itself is
    `face_at(split, index)`.

    Args:
        split: train, validation, test or heldout.
        count: how many faces.
        size: side of the pictures in pixels.
        cache_dir: folder that keeps the rendered pictures for later runs; None renders each time.

    Raises:
        UsageError: an unknown split, or a count or size that is no positive number.
    """

    def __init__(self, split: str, count: int, size: int = 64, cache_dir: str | Path | None = None):
        super().__init__(split, count, size)
        self._pictures = None if cache_dir is None else _cached(Path(cache_dir), split, count, size)

    def item(self, index: int) -> dict[str, Any]:
        face = face_at(self.split, index)
        picture = _picture(self.split, index, self.size) if self._pictures is None else self._pictures[index]
        return {
            "image": image_tensor(picture[..., :3]),
            "key": f"faces/{self.split}/{index:06d}",
            "index": index,
            "caption": caption_at(self.split, index).text,
            "factors": measured(face),
            "visible": visible(face),
            "labels": torch.from_numpy(picture[..., 3].astype(np.int64)),
        }


class Faces(Rendered):
    """Toy faces in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many faces of each split.
        cache_dir: folder that keeps the rendered pictures for later runs; None renders while training.
    """

    def __init__(
        self, size: int = 64, train: int = 2000, validation: int = 256, test: int = 256, cache_dir: str | Path | None = None
    ):
        super().__init__(size, train, validation, test)
        self.cache_dir = cache_dir

    def dataset(self, split: str) -> FaceDataset:
        return FaceDataset(split, self.counts[split], self.size, self.cache_dir)


def _picture(split: str, index: int, size: int) -> np.ndarray:
    """Return uint8 (H, W, 4): RGB and the part labels."""
    image, labels = render(face_at(split, index), size, labels=True)
    assert labels is not None
    return np.dstack([image, labels])


def _cached(folder: Path, split: str, count: int, size: int) -> np.ndarray:
    # The name holds a hash of rendered faces, so that a cache never outlives the renderer that made it.
    look = hashlib.sha256(b"".join(_picture(split, k, size).tobytes() for k in range(8))).hexdigest()[:12]
    path = folder / f"faces-{split}-{size}px-{count}-{look}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        pictures = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=(count, size, size, 4))
        for index in range(count):
            pictures[index] = _picture(split, index, size)
        pictures.flush()
        draft.replace(path)
    return np.load(path, mmap_mode="r")
