"""Training a text-to-image UNet to see a source image and follow an instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.data.encoded import drawn
from editkit.data.items import check_holds
from editkit.engine.solvers import solver_named
from editkit.errors import UsageError
from editkit.methods.fully_supervised.instructpix2pix.pairs import PairMaker
from editkit.training.denoising import check_times, denoising_error, drop_conditions, posteriors
from editkit.training.editor import images_of
from editkit.training.instructed import InstructedEditor
from editkit.training.method import Artefact, OptimizerFactory, SchedulerFactory
from editkit.training.unet_tuning import UNetTuning, widened
from editkit.types import Condition, EditRequest

NAME = "instructpix2pix"
SHOWN = 8  # edits of a sample grid
CHOOSE = "choose data=instructpix2pix or data=magicbrush with data.root=DIR, or data=scene_edits"


class InstructPix2Pix(UNetTuning):
    """Train a UNet to see the source image and follow an instruction; items hold image, target and instruction.

    Departures from the released code: the error is that of the network's own output, so of v where the backbone predicts v;
    times are stratified (`denoising_error`); the moving average follows optimiser steps, not micro-batches.

    Args:
        backbone: a text-to-image model, whose UNet is widened, or one that edits by instruction already: that one edits
            without trained parts too, and is trained on.
        steps, text_scale, image_scale, solver, negative, rescale: of an edit, see `InstructedEditor`.
        dropped: share of the samples without their text, without their image, and without both, a share each.
        changed: what the places that an edit changes weigh besides, for where edits are small; 0 in the paper.
        times: shares of the noise scale between which times are drawn; all of it in the paper.
        checkpointing, lora: see `UNetTuning`.
        pairs: makes training pairs, for the task `pairs`.

    Raises:
        UsageError: a backbone of another kind, or a share that three cannot have, or an unknown solver.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        steps: int = 100,
        text_scale: float = 7.5,
        image_scale: float = 1.5,
        solver: str = "euler-ancestral",
        negative: str = "",
        rescale: float = 0.0,
        dropped: float = 0.05,
        changed: float = 0.0,
        times: Sequence[float] = (0.0, 1.0),
        checkpointing: bool = False,
        lora: Mapping[str, Any] | None = None,
        pairs: PairMaker | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        if not 0 <= 3 * dropped <= 1:
            raise UsageError(f"method.dropped={dropped} is out of range; three such shares are dropped: give 0 to 0.33")
        solver_named(solver)
        ready = getattr(backbone, "extra_channels", 0) != 0
        latent = widened(backbone, getattr(backbone, "sample_shape", (0,))[0], NAME, "sd15")
        training: dict[str, Any] = {"checkpointing": checkpointing, "lora": lora, "optimizer": optimizer, "scheduler": scheduler}
        super().__init__(latent, solver=solver, **training)
        self.dropped, self.pairs, self._ready = dropped, pairs, ready
        self.changed, self.times = changed, check_times(times)
        self.new_layers = () if ready else ("conv_in.",)
        self.sampling: dict[str, Any] = {"steps": steps, "text_scale": text_scale, "image_scale": image_scale}
        self.sampling |= {"solver": solver, "negative": negative, "rescale": rescale}
        self.preview: list[EditRequest] = []
        self.answers: list[Tensor] = []

    @property
    def needs_trained(self) -> bool:
        """Return whether the backbone came without the image's channels."""
        return not self._ready

    # Training.

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the error of the network's output per sample, (B,)."""
        both = [posteriors(self.backbone, batch, name) for name in ("image", "target")]
        target = drawn(both[1]) * self.backbone.vae.config.scaling_factor
        weight = 1 + self.changed * changed(*(each[:, 0] for each in both)) if self.changed else None
        return {"denoise": denoising_error(self.backbone, target, self.condition(batch), times=self.times, weight=weight)}

    def condition(self, batch: Mapping[str, Any]) -> Condition:
        """Return the instructions' tokens and the sources' mean, unscaled, some of them dropped: the text "", the image 0."""
        image = posteriors(self.backbone, batch, "image")[:, 0]
        no_text, no_image = drop_conditions(len(image), self.dropped, image.device)
        texts = ["" if no else text for text, no in zip(batch["instruction"], no_text.tolist(), strict=True)]
        return Condition(tokens=self.backbone.tokens(texts), concat=image.masked_fill(no_image.view(-1, 1, 1, 1), 0.0))

    @torch.no_grad()
    def precompute(self, dataset: Any) -> None:
        """Keep a few training pairs for the sample grid.

        Raises:
            UsageError: data of something else.
        """
        items = [dataset[k] for k in range(min(SHOWN, len(dataset)))]
        check_holds(items[0], ("image", "target", "instruction"), NAME, CHOOSE)
        self.preview = [
            EditRequest(item["key"], image=self._picture(item, "image"), instruction=item["instruction"]) for item in items
        ]
        self.answers = [self._picture(item, "target") for item in items]

    def _picture(self, item: Mapping[str, Any], name: str) -> Tensor:
        """Return a picture (3, H, W) of an item, decoded if that holds its posterior alone."""
        if name in item:
            return item[name]
        mean = item[f"{name}_posterior"][:1].to(self.device)
        return self.backbone.decode(mean * self.backbone.vae.config.scaling_factor)[0].clamp(-1, 1).cpu()

    def sample_grid(self) -> Tensor | None:
        """Return source, edit and answer of a few training pairs, (N, 3, 3, H, W)."""
        if not self.preview:
            return None
        editor = InstructedEditor(self.backbone, name=NAME, **{**self.sampling, "steps": min(self.sampling["steps"], 25)})
        edited = editor.edit(self.preview, editor.prepare(self.preview)).images.cpu()
        return torch.stack([images_of(self.preview), edited, torch.stack(self.answers)], 1)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two encoded pairs of noise."""
        both = torch.zeros(2, 2, *self.backbone.sample_shape, device=self.device)
        both[:, 0].normal_()
        pair = {"image_posterior": both, "target_posterior": both.flip(0)}
        return {**pair, "instruction": ["make it night", "make the cup blue"], "key": ["dummy/0", "dummy/1"]}

    # Making pairs.

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """Return pairs, if the recipe says how they are made."""
        return {} if self.pairs is None else {"pairs": partial(self._make, self.pairs)}

    def _make(self, pairs: PairMaker, data: Any) -> Mapping[str, Any]:
        if self._ready:
            raise UsageError("pairs are drawn by a text-to-image model, and this backbone edits: choose backbone=sd15")
        return pairs(self.backbone, data)

    # Editing.

    def editor(self, artefacts: Sequence[Artefact]) -> InstructedEditor:
        """Return what edits with a trained file, or with the backbone as it is."""
        return InstructedEditor(self.tuned(artefacts), name=NAME, **self.sampling)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Return how much each place of two latents (B, C, h, w) differs, (B, 1, h, w) in [0, 1], 1 = as much as any here does."""
    difference = (after - before).square().mean(1, keepdim=True).sqrt()
    return difference / difference.amax((2, 3), keepdim=True).clamp(min=torch.finfo(difference.dtype).eps)
