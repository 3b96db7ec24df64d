"""Stylising with a fine-tuned network: the content without its style, inverted by the original network, comes back in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.rng import batch_noise
from editkit.errors import UserError
from editkit.methods.weakly_supervised.stylediffusion.style import Gray
from editkit.training.artefact import Artefact
from editkit.training.editor import draws_of, images_of
from editkit.training.inverting import Inverted
from editkit.training.mix import Checkpoint
from editkit.training.tuned_editor import TunedEditor, checkpoint_of
from editkit.types import EditRequest


class StyleDiffusionEditor(TunedEditor):
    """Takes the style of images away, inverts what is left and brings it back by fine-tuned networks.

    Args:
        backbone, checkpoints, settings: see `TunedEditor`.
        removal: from images to contents.
        stochastic: noise the contents in closed form instead, for a result of its own for each seed and sample number.
    """

    name = "stylediffusion"

    def __init__(
        self, backbone: Backbone, checkpoints: Sequence[Checkpoint], *, removal: Gray, stochastic: bool = False, **settings: Any
    ) -> None:
        super().__init__(backbone, checkpoints, **settings)
        self.removal, self.stochastic = removal, stochastic

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Inverted:
        """Return the contents of the requests at the noisiest level; a reconstruction is compared with the contents."""
        contents = self.removal(images_of(requests).to(self.backbone.device))
        if self.stochastic:
            return Inverted(self._noised(contents, requests), [self.removal.calls] * len(requests), [])
        state = super().prepare([request.with_(image=one) for request, one in zip(requests, contents, strict=True)])
        state.calls = [calls + self.removal.calls for calls in state.calls]
        return state

    def _noised(self, contents: Tensor, requests: Sequence[EditRequest]) -> Tensor:
        x0 = self.backbone.encode(contents)
        noise = batch_noise(
            x0.shape[1:],
            **draws_of(requests),
            purpose="stylediffusion/forward",
            device=x0.device,
        )
        assert self.start is not None, "a checkpoint has a time"
        return self.backbone.schedule.add_noise(x0, self.start, noise)


def styled_by(artefact: Artefact, backbone: Backbone) -> Checkpoint:
    """Return the fine-tuned network of a style's file.

    Raises:
        UserError: a file of another method, whose network expects colours, or what `tuned_by` refuses.
    """
    if "style_picture" not in artefact.card:
        maker = artefact.card.get("method", "something unknown")
        raise UserError(f"the weights {artefact.name!r} are of no style (made by {maker}): train one with recipe=stylediffusion")
    return checkpoint_of(artefact, backbone)
