"""Fine-tuning a diffusion model on its one-step estimate at t0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.clip import ClipEncoder
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError, suggestion
from editkit.methods.weakly_supervised.effdiff.editor import EffDiffEditor, Encoder, grid
from editkit.methods.weakly_supervised.effdiff.single import SingleImageEditor
from editkit.training.editor import images_of, requests_of
from editkit.training.finetuned import FineTuning, tuned_by
from editkit.training.method import Artefact, Editor, OptimizerFactory, SchedulerFactory, Update
from editkit.training.share import computed_once, looked_up

NOISES = ("fixed", "fresh")
MOST_STEPS = 40


class EffDiff(FineTuning):
    """Fine-tune a copy of a pixel model on the estimate that it makes of an image from its state at t0.

    One forward and one backward pass an update; the decoder's other times change through the shared weights. Departures from
    the released code: the images of an epoch come in a new order each time, own images are not squashed, see also `TextEdit`.

    Args:
        backbone: the pixel model; it stays as it is, a copy is trained.
        clip: makes the CLIP whose direction guides the training.
        prompt: what edited images should show ("a smiling face").
        source_prompt: what the images show ("a face").
        t0: time of the states; 200 to 350 for shallow edits, 350 to 500 for strong ones, 100 to 200 more with encoder "ddim".
        encoder: see `Encoder`; a trained file may be edited through either.
        latent_noise: "fixed" draws an image's noise once, as the paper does; "fresh" anew at each visit, which regularises.
        n_inv: levels of the inversion of encoder "ddim".
        n_test: levels of an edit, 1 to 40: fewer give fewer artefacts, more a stronger edit.
        clip_weight, l1_weight, identity_weight: of the three losses; the paper has no third one.
        identity: makes the network of the third one.
        single_image: adapt to each image by itself when editing (see `SingleImageEditor`); nothing is trained ahead then.
        iterations, copies, growth, plateau: of the single-image mode.
        cache: folder of the inversion cache; None = none.
        seed: of the noise in training.

    Raises:
        UsageError: an unknown encoder or noise, n_test out of range, or a t0 that is no time of the backbone.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        clip: Callable[[], ClipEncoder],
        prompt: str,
        source_prompt: str,
        t0: int = 350,
        encoder: str = "q_sample",
        latent_noise: str = "fixed",
        n_inv: int = 40,
        n_test: int = 6,
        clip_weight: float = 3.0,
        l1_weight: float = 1.0,
        identity_weight: float = 0.0,
        identity: Callable[[], nn.Module] | None = None,
        single_image: bool = False,
        iterations: int = 20,
        copies: int = 1,
        growth: float = 1.3,
        plateau: float = 0.005,
        cache: str | None = None,
        seed: int = 0,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        weights = {"clip_weight": clip_weight, "l1_weight": l1_weight, "identity_weight": identity_weight}
        super().__init__(backbone, clip, identity, source_prompt, prompt, weights, optimizer=optimizer, scheduler=scheduler)
        if latent_noise not in NOISES:
            raise UsageError(
                f"method.latent_noise={latent_noise} is unknown.{suggestion(latent_noise, NOISES)} Choose fixed or fresh"
            )
        if not 1 <= n_test <= MOST_STEPS:
            raise UsageError(f"method.n_test={n_test} is out of range: give 1 to {MOST_STEPS}; 6 is the paper's")
        grid(backbone.schedule, n_test, t0)
        self.t0, self.n_test, self.latent_noise, self.seed = t0, n_test, latent_noise, seed
        self.encode = Encoder(backbone, t0, encoder, n_inv)
        self.single_image = single_image
        self.single = {"iterations": iterations, "copies": copies, "growth": growth, "plateau": plateau}
        self.cache = InversionCache(Path(cache)) if cache else None

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return all parameters of the copy; nothing in the single-image mode."""
        return {} if self.single_image else super().trainable()

    def precompute(self, dataset: Any) -> None:
        """Keep every image's features, and its inversion if the encoder makes one, each process making its share.

        Images that the plan shows only once are left to their batch: keeping them would save nothing.
        """
        self.preview = requests_of(dataset, 4)
        if self.stepper is None or self.stepper.plan.shown() > len(dataset):
            self.kept = computed_once(dataset, self.compute_sources)

    @torch.no_grad()
    def compute_sources(self, images: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return the features of images (B, 3, H, W), and their states "x" at t0 if those take network calls."""
        images = images.to(self.backbone.device)
        with torch.autocast(images.device.type, enabled=False):  # what is cached serves runs of any precision
            found = self.criterion.features(images)
            return found | {"x": self.encode(images, keys, seed=self.seed, cache=self.cache)} if self.encode.calls else found

    def sources(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the features and the states "x" of a batch, kept ones where there are."""
        images, keys = batch["image"], batch["key"]
        found = looked_up(self.kept, keys, self.device)
        if found is None:
            found = self.compute_sources(images, keys)
        if "x" not in found:
            found["x"] = self.encode(images, keys, seed=self.seed, sample=self._visit())
        return found

    def _visit(self) -> int:
        """Return the sample number of the noise: the images seen so far, where each visit has its own."""
        return self.stepper.images if self.stepper is not None and self.latent_noise == "fresh" else 0

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield one update: a single call of the network, at t0."""
        sources = self.sources(batch)
        pred = self.network()(sources["x"], float(self.t0))
        losses, report = self.criterion(self.backbone.decode(pred.x0), batch["image"], sources)
        yield Update("unet", losses, report)

    # What training leaves behind.

    def card(self) -> dict[str, Any]:
        """Return what the exported file says, with the time that it comes back from."""
        way = {"t0": self.t0, "encoder": self.encode.kind, "n_inv": self.encode.n_inv, "latent_noise": self.latent_noise}
        return {**super().card(), **way}

    def editor(self, artefacts: Sequence[Artefact]) -> Editor:
        """Return what edits with the trained file, or in the single-image mode what needs none.

        Raises:
            UserError: not one file, or one that does not fit.
        """
        if self.single_image:
            given = {"source_prompt": self.source_prompt, "n_test": self.n_test, "cache": self.cache, **self.single}
            return SingleImageEditor(self.encode, self.criterions(), self.optimizer, **given)  # type: ignore[arg-type]
        if len(artefacts) != 1:
            raise UsageError(f"effdiff edits with one trained file, got {len(artefacts)}: give one --weights FILE")
        (artefact,) = artefacts
        tuned = tuned_by(artefact, self.backbone)
        encode = Encoder(self.backbone, int(artefact.card["t0"]), self.encode.kind, self.encode.n_inv)
        return EffDiffEditor(encode, tuned, n_test=self.n_test, strength=artefact.strength, cache=self.cache)

    def sample_grid(self) -> Tensor | None:
        """Return source and edit of a few training images, (4, 2, 3, H, W)."""
        if not self.preview:
            return None
        edits = EffDiffEditor(self.encode, self.network(), n_test=self.n_test, cache=self.cache).edit(self.preview).images.cpu()
        return torch.stack([images_of(self.preview), edits], 1)
