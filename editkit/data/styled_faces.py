"""The toy world's faces in styles as a data module: what a model of drawn pictures learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from editkit.data.items import image_tensor
from editkit.data.rendered import Rendered, RenderedDataset, some_of
from editkit.data.toyworld.styled import STYLES, caption, key_of, measured, render, styled_at, visible


class StyledFaceDataset(RenderedDataset):
    """The first `count` faces of a split, drawn in some styles in turn; no face is shown in two of them.

    Items hold image, key, index, caption, factors, visible and labels (see `editkit.data.items`).

    Args:
        split, count, size: as for `RenderedDataset`.
        styles: some of `styled.STYLES`.

    Raises:
        UsageError: as for `RenderedDataset`, no style or an unknown one.
    """

    def __init__(self, split: str, count: int, size: int = 64, styles: Sequence[str] = STYLES):
        super().__init__(split, count, size)
        self.styles = some_of(STYLES, styles, "data.styles")

    def item(self, index: int) -> dict[str, Any]:
        style = self.styles[index % len(self.styles)]
        face = styled_at(self.split, index, style)
        picture, labels = render(face, self.size)
        return {
            "image": image_tensor(picture),
            "key": key_of(self.split, index, style),
            "index": index,
            "caption": caption(self.split, index, style),
            "factors": measured(face),
            "visible": visible(face),
            "labels": torch.from_numpy(labels.astype(np.int64)),
        }


class StyledFaces(Rendered):
    """Toy faces in styles, in three splits.

    Args:
        size: side of the pictures in pixels.
        train, validation, test: how many faces of each split, the styles in turn.
        styles: which styles.
    """

    def __init__(
        self, size: int = 64, train: int = 40_000, validation: int = 256, test: int = 256, styles: Sequence[str] = STYLES
    ):
        super().__init__(size, train, validation, test)
        self.styles = tuple(styles)

    def dataset(self, split: str) -> StyledFaceDataset:
        return StyledFaceDataset(split, self.counts[split], self.size, self.styles)
