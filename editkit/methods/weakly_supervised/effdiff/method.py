"""Fine-tuning a diffusion model on its one-step estimate at t0."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.clip import ClipEncoder
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError, suggestion
from editkit.losses.clip_direction import DirectionalClip
from editkit.losses.identity import Identity
from editkit.losses.text_edit import TextEdit
from editkit.methods.weakly_supervised.effdiff.editor import (
    EffDiffEditor,
    Encoder,
    device_of,
    difference,
    grid,
    tuned_by,
)
from editkit.methods.weakly_supervised.effdiff.single import SingleImageEditor
from editkit.training.method import Artefact, Editor, Method, OptimizerFactory, SchedulerFactory, Update
from editkit.training.plan import Plan
from editkit.types import EditRequest

NOISES = ("fixed", "fresh")
MOST_STEPS = 40
BATCH = 16  # images at once in precomputation


class EffDiff(Method):
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
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if latent_noise not in NOISES:
            raise UsageError(
                f"method.latent_noise={latent_noise} is unknown.{suggestion(latent_noise, NOISES)} Choose fixed or fresh"
            )
        if not 1 <= n_test <= MOST_STEPS:
            raise UsageError(f"method.n_test={n_test} is out of range: give 1 to {MOST_STEPS}; 6 is the paper's")
        grid(backbone.schedule, n_test, t0)
        self.backbone = backbone
        self.tuned: Backbone | None = None
        self.make_clip, self.make_identity = clip, identity
        self.prompt, self.source_prompt = prompt, source_prompt
        self.t0, self.n_test, self.latent_noise, self.seed = t0, n_test, latent_noise, seed
        self.encode = Encoder(backbone, t0, encoder, n_inv)
        self.weights = {"clip_weight": clip_weight, "l1_weight": l1_weight, "identity_weight": identity_weight}
        self.single_image = single_image
        self.single = {"iterations": iterations, "copies": copies, "growth": growth, "plateau": plateau}
        self.cache = InversionCache(Path(cache)) if cache else None
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.preview: list[EditRequest] = []

    # Training.

    def network(self) -> Backbone:
        """Return the copy that is trained, made when it is first asked for: editing needs none."""
        if self.tuned is None:
            self.tuned = copy.deepcopy(self.backbone)
        return self.tuned

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return all parameters of the copy; nothing in the single-image mode."""
        return {} if self.single_image else {"unet": self.network().parameters()}

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return {group: {parameter name: parameter}}."""
        self.trainable()  # the copy has to be there before the module's parameters are listed
        return super().trained_parameters()

    def prepare_training(self) -> None:
        """Load the networks of the losses."""
        self.criterion = self.criterions()(self.source_prompt, self.prompt)

    def criterions(self) -> Callable[[str, str], TextEdit]:
        """Load the networks of the losses and return (source text, target text) -> the losses."""
        device = device_of(self.backbone)
        clip = self.make_clip().to(device)
        identity = Identity(self.make_identity()) if self.make_identity and self.weights["identity_weight"] else None
        return functools.cache(
            lambda source, target: TextEdit(DirectionalClip(clip, source, target), identity, **self.weights).to(device)
        )

    def precompute(self, dataset: Any) -> None:
        """Keep every image's features, and its inversion if the encoder makes one, each process making its share.

        Images that the plan shows only once are left to their batch: keeping them would save nothing.
        """
        shown = [dataset[k] for k in range(min(4, len(dataset)))]
        self.preview = [EditRequest(key=item["key"], image=item["image"]) for item in shown]
        if self.stepper is not None and _images(self.stepper.plan) <= len(dataset):
            return
        together = torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        own = range(rank, len(dataset), world)
        kept: dict[str, dict[str, Tensor]] = {}
        for first in range(0, len(own), BATCH):
            items = [dataset[k] for k in own[first : first + BATCH]]
            columns = self.compute_sources(torch.stack([item["image"] for item in items]), [item["key"] for item in items])
            for n, item in enumerate(items):
                kept[item["key"]] = {name: column[n].cpu() for name, column in columns.items()}
        shares = [kept]
        if world > 1:
            shares = [{} for _ in range(world)]
            torch.distributed.all_gather_object(shares, kept)
        self.kept = {key: row for share in shares for key, row in share.items()}

    @torch.no_grad()
    def compute_sources(self, images: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return the features of images (B, 3, H, W), and their states "x" at t0 if those take network calls."""
        images = images.to(device_of(self.backbone))
        with torch.autocast(images.device.type, enabled=False):  # what is cached serves runs of any precision
            found = self.criterion.features(images)
            return found | {"x": self.encode(images, keys, seed=self.seed, cache=self.cache)} if self.encode.calls else found

    def sources(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the features and the states "x" of a batch, kept ones where there are."""
        images, keys = batch["image"], batch["key"]
        if all(key in self.kept for key in keys):
            rows = [self.kept[key] for key in keys]
            found = {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}
        else:
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

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images."""
        shape = (2, 3, *self.backbone.sample_shape[1:])
        return {"image": torch.rand(shape, device=self.device) * 2 - 1, "key": ["dummy/0", "dummy/1"]}

    # What training leaves behind.

    def artefacts(self) -> list[Artefact]:
        """Return the change of the network's weights, named after the text that it edits towards."""
        return [Artefact(self.prompt, difference(self.network(), self.backbone), card=self.card())]

    def card(self) -> dict[str, Any]:
        """Return what the exported file says: the texts, the time that it comes back from, the backbone that it changes."""
        texts = {"prompt": self.prompt, "source_prompt": self.source_prompt}
        way = {"t0": self.t0, "encoder": self.encode.kind, "n_inv": self.encode.n_inv, "latent_noise": self.latent_noise}
        return {**super().card(), "kind": "difference", **texts, **way}

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
        return torch.stack([torch.stack([request.image for request in self.preview]), edits], 1)


def _images(plan: Plan) -> int:
    """Return how many images a plan shows, one update a batch."""
    return plan.length * plan.batch_size if plan.images is None else plan.images
