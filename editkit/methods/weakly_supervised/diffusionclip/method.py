"""Fine-tuning a whole diffusion model so that its way back from noise leads to a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.clip import ClipEncoder
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError, suggestion
from editkit.methods.weakly_supervised.diffusionclip import tasks
from editkit.methods.weakly_supervised.diffusionclip.editor import DiffusionClipEditor
from editkit.training.chain import CHAINS, Losses, Recomputed
from editkit.training.editor import images_of, requests_of
from editkit.training.finetuned import FineTuning
from editkit.training.method import Artefact, OptimizerFactory, SchedulerFactory, Update
from editkit.training.mix import Checkpoint
from editkit.training.share import computed_once, looked_up
from editkit.training.tuned_editor import checkpoint_of


class DiffusionClip(FineTuning):
    """Fine-tune a copy of a pixel model on the way back of inverted images, guided by a CLIP direction.

    Departures from the released code: the images of an epoch come in a new order each time, grids are exact where theirs lose
    one to rounding, and see `TextEdit` and `editkit.training.chain.stepwise`.

    Args:
        backbone: the pixel model; it stays as it is, a copy is trained.
        clip: makes the CLIP whose direction guides the training.
        prompt: what edited images should show ("a smiling face").
        source_prompt: what the images show ("a face").
        t0: time that images are inverted to; the farther the edit from the image, the larger (200 to 600).
        t0_by_word: other t0 for prompts that have one of these words in them.
        n_inv, n_train, n_test: levels of inversion, training and editing, all from 0 to t0.
        training: "unrolled" differentiates through the whole chain and steps once a batch; "stepwise" steps after each of
            the n_train calls, with the memory of one.
        checkpointing: run the calls of the chain again in the backward pass instead of keeping their activations.
        clip_weight, l1_weight, identity_weight: of the three losses.
        identity: makes the network of the third one.
        mix: editing with several trained files: {threshold: weights}, from a time upwards one weight for each; None = equal.
        eta: noise that editing adds at each step, 0 = none.
        measure: editing also reconstructs each image, to report its PSNR.
        cache: folder of the inversion cache, which serves other prompts as well; None = none.
        checkpoints: trained files that the task `unseen` uses.
        unseen_rounds: times that the task `unseen` noises an image and brings it back.
        latent_steps, latent_lr: length and Adam's rate of the task `latents`.
        task_images: images that a task uses.
        run_dir: folder that tasks write to.

    Raises:
        UsageError: another training, or a t0 that is no time of the backbone.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        clip: Callable[[], ClipEncoder],
        prompt: str,
        source_prompt: str,
        t0: int = 500,
        t0_by_word: Mapping[str, int] | None = None,
        n_inv: int = 40,
        n_train: int = 6,
        n_test: int = 40,
        training: str = "unrolled",
        checkpointing: bool = False,
        clip_weight: float = 3.0,
        l1_weight: float = 1.0,
        identity_weight: float = 0.0,
        identity: Callable[[], nn.Module] | None = None,
        mix: Mapping[float, Sequence[float]] | None = None,
        eta: float = 0.0,
        measure: bool = True,
        cache: str | None = None,
        checkpoints: Sequence[str] = (),
        unseen_rounds: int = 8,
        latent_steps: int = 40,
        latent_lr: float = 0.02,
        task_images: int = 8,
        run_dir: str = ".",
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        weights = {"clip_weight": clip_weight, "l1_weight": l1_weight, "identity_weight": identity_weight}
        super().__init__(backbone, clip, identity, source_prompt, prompt, weights, optimizer=optimizer, scheduler=scheduler)
        if training not in CHAINS:
            raise UsageError(
                f"method.training={training} is unknown.{suggestion(training, CHAINS)} Choose from {', '.join(CHAINS)}"
            )
        words = set(re.findall(r"\w+", prompt.lower()))
        self.t0 = next((t for word, t in (t0_by_word or {}).items() if word in words), t0)
        self.n_inv, self.n_train, self.n_test = n_inv, n_train, n_test
        self.strategy, self.checkpointing = training, checkpointing
        self.mix, self.eta, self.measure = mix, eta, measure
        self.cache = InversionCache(Path(cache)) if cache else None
        self.checkpoint_paths, self.run_dir, self.task_images = tuple(checkpoints), Path(run_dir), task_images
        self.unseen_rounds, self.latent_steps, self.latent_lr = unseen_rounds, latent_steps, latent_lr
        self.levels = backbone.schedule.levels(n_train, start=self.t0)
        self.inversion = Inversion(backbone)

    # Training.

    def precompute(self, dataset: Any) -> None:
        """Keep every image's inversion and features in memory, each process making its share.

        Images that the plan shows only once are left to their batch: keeping them would save nothing, and those that it
        never shows would be inverted in vain.
        """
        self.preview = requests_of(dataset, 4)
        steps = self.n_train if self.strategy == "stepwise" else 1
        if self.stepper is None or self.stepper.plan.shown(steps) > len(dataset):
            self.kept = computed_once(dataset, lambda images, keys: self.compute_sources(images))

    @torch.no_grad()
    def compute_sources(self, images: Tensor) -> dict[str, Tensor]:
        """Return the noisiest states "x", by the original network, and the features of images (B, 3, H, W)."""
        images = images.to(self.backbone.device)
        with torch.autocast(images.device.type, enabled=False):  # what is cached serves runs of any precision
            levels = self.backbone.schedule.levels(self.n_inv, start=self.t0)
            x = self.inversion(self.backbone.encode(images), levels, self.cache).x
            return {"x": x, **self.criterion.features(images)}

    def sources(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the kept sources of a batch, or compute them now."""
        found = looked_up(self.kept, batch["key"], self.device)
        return self.compute_sources(batch["image"]) if found is None else found

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield one update (unrolled), or one for each call of the chain (stepwise)."""
        sources, images = self.sources(batch), batch["image"]

        def criterion(x: Tensor) -> Losses:
            return self.criterion(self.backbone.decode(x), images, sources)

        network = Recomputed(self.network()) if self.checkpointing else self.network()
        for losses, report in CHAINS[self.strategy](network, self.levels, sources["x"], criterion):
            yield Update("unet", losses, report)

    # What training leaves behind.

    def card(self) -> dict[str, Any]:
        """Return what the exported file says, with the time that it comes back from."""
        chain = {"t0": self.t0, "n_inv": self.n_inv, "n_train": self.n_train, "training": self.strategy}
        return {**super().card(), **chain}

    def editor(self, artefacts: Sequence[Artefact]) -> DiffusionClipEditor:
        """Return what edits with these files."""
        return self._editor([checkpoint_of(artefact, self.backbone) for artefact in artefacts], self.mix)

    def sample_grid(self) -> Tensor | None:
        """Return source, half strength and full strength of a few training images, (4, 3, 3, H, W)."""
        if not self.preview:
            return None
        editor = self._editor([Checkpoint(self.prompt, self.network(), self.t0)])
        editor.measure = False
        state = editor.prepare(self.preview)
        edits = [editor.edit([one.with_(strength=s) for one in self.preview], state).images.cpu() for s in (0.5, 1.0)]
        return torch.stack([images_of(self.preview), *edits], 1)

    def _editor(
        self, checkpoints: Sequence[Checkpoint], mix: Mapping[float, Sequence[float]] | None = None
    ) -> DiffusionClipEditor:
        return DiffusionClipEditor(
            self.backbone,
            checkpoints,
            mix=mix,
            n_inv=self.n_inv,
            n_test=self.n_test,
            eta=self.eta,
            cache=self.cache,
            measure=self.measure,
        )

    # Steps that are not training.

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """Return unseen and latents."""
        return {step.__name__: partial(step, self) for step in (tasks.unseen, tasks.latents)}
