"""Copy and paste: the reference itself, resized to the mask's box, put into the mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from editkit.backbones.base import Backbone
from editkit.data.pasted import squashed
from editkit.training.method import Artefact, Editor, Method
from editkit.training.painting import check_mask
from editkit.types import EditRequest, EditResult


class CopyPasteEditor(Editor):
    """Shows the reference in the mask as it is: what looks most like it and fits least."""

    name = "copy-paste"
    needs = ("image", "mask", "references")
    whole_references = True

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raise a UserError for an input that is missing, or an empty or full mask."""
        super().check(requests)
        for request in requests:
            check_mask(request)

    def edit(self, requests: Sequence[EditRequest], state: Any) -> EditResult:
        """Return the images with their first references in their masks."""
        pictures = [squashed(one.image, one.mask, one.references[0]) for one in requests]  # type: ignore[arg-type]
        return EditResult(torch.stack(pictures))


class CopyPaste(Method):
    """The baseline as a recipe names it.

    Args:
        backbone: pictures have its size; it does nothing else.
    """

    def __init__(self, *, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return nothing: there is nothing to train."""
        return {}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return the editor; it uses no trained parts."""
        return CopyPasteEditor()
