"""Fine-tuning a whole diffusion model so that its way back from noise leads to a text."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
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
from editkit.methods.weakly_supervised.diffusionclip import tasks
from editkit.methods.weakly_supervised.diffusionclip.editor import (
    DiffusionClipEditor,
    checkpoint_of,
    device_of,
    difference,
    invert,
)
from editkit.methods.weakly_supervised.diffusionclip.process import CHAINS, Checkpoint, Losses, Recomputed
from editkit.training.method import Artefact, Method, OptimizerFactory, SchedulerFactory, Update
from editkit.training.plan import Plan
from editkit.types import EditRequest

BATCH = 16  # images at once in precomputation


class DiffusionClip(Method):
    """Fine-tune a copy of a pixel model on the way back of inverted images, guided by a CLIP direction.

    Departures from the released code: the images of an epoch come in a new order each time, grids are exact where theirs lose
    one to rounding, and see `TextEdit` and `process.stepwise`.

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
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if training not in CHAINS:
            raise UsageError(
                f"method.training={training} is unknown.{suggestion(training, CHAINS)} Choose from {', '.join(CHAINS)}"
            )
        self.backbone = backbone
        self.tuned: Backbone | None = None
        self.make_clip, self.make_identity = clip, identity
        self.prompt, self.source_prompt = prompt, source_prompt
        words = set(re.findall(r"\w+", prompt.lower()))
        self.t0 = next((t for word, t in (t0_by_word or {}).items() if word in words), t0)
        self.n_inv, self.n_train, self.n_test = n_inv, n_train, n_test
        self.strategy, self.checkpointing = training, checkpointing
        self.weights = {"clip_weight": clip_weight, "l1_weight": l1_weight, "identity_weight": identity_weight}
        self.mix, self.eta, self.measure = mix, eta, measure
        self.cache = InversionCache(Path(cache)) if cache else None
        self.checkpoint_paths, self.run_dir, self.task_images = tuple(checkpoints), Path(run_dir), task_images
        self.unseen_rounds, self.latent_steps, self.latent_lr = unseen_rounds, latent_steps, latent_lr
        self.levels = backbone.schedule.levels(n_train, start=self.t0)
        self.digest = functools.cache(backbone.digest)
        self.kept: dict[str, dict[str, Tensor]] = {}
        self.preview: list[EditRequest] = []

    # Training.

    def network(self) -> Backbone:
        """Return the copy that is trained, made when it is first asked for: editing needs none."""
        if self.tuned is None:
            self.tuned = copy.deepcopy(self.backbone)
        return self.tuned

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return all parameters of the copy."""
        return {"unet": self.network().parameters()}

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return {group: {parameter name: parameter}}."""
        self.trainable()  # the copy has to be there before the module's parameters are listed
        return super().trained_parameters()

    def prepare_training(self) -> None:
        """Load the networks of the losses."""
        self.criterion = self.make_criterion()

    def make_criterion(self) -> TextEdit:
        """Return the losses towards the prompt."""
        device = device_of(self.backbone)
        identity = Identity(self.make_identity()) if self.make_identity and self.weights["identity_weight"] else None
        direction = DirectionalClip(self.make_clip().to(device), self.source_prompt, self.prompt)
        return TextEdit(direction, identity, **self.weights).to(device)

    def precompute(self, dataset: Any) -> None:
        """Keep every image's inversion and features in memory, each process making its share.

        Images that the plan shows only once are left to their batch: keeping them would save nothing, and those that it
        never shows would be inverted in vain.
        """
        self.preview = tasks.requests_of(dataset, 4)
        if self.stepper is not None and self._images(self.stepper.plan) <= len(dataset):
            return
        together = torch.distributed.is_initialized()
        rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        own = range(rank, len(dataset), world)
        kept: dict[str, dict[str, Tensor]] = {}
        for first in range(0, len(own), BATCH):
            items = [dataset[k] for k in own[first : first + BATCH]]
            columns = self.compute_sources(torch.stack([item["image"] for item in items]))
            for n, item in enumerate(items):
                kept[item["key"]] = {name: column[n].cpu() for name, column in columns.items()}
        shares = [kept]
        if world > 1:
            shares = [{} for _ in range(world)]
            torch.distributed.all_gather_object(shares, kept)
        self.kept = {key: row for share in shares for key, row in share.items()}

    def _images(self, plan: Plan) -> float:
        """Return how many images a plan shows."""
        per_batch = self.n_train if self.strategy == "stepwise" else 1
        return plan.length * plan.batch_size / per_batch if plan.images is None else plan.images

    @torch.no_grad()
    def compute_sources(self, images: Tensor) -> dict[str, Tensor]:
        """Return the noisiest states "x", by the original network, and the features of images (B, 3, H, W)."""
        images = images.to(device_of(self.backbone))
        with torch.autocast(images.device.type, enabled=False):  # what is cached serves runs of any precision
            levels = self.backbone.schedule.levels(self.n_inv, start=self.t0)
            x = invert(self.backbone, self.backbone.encode(images), levels, self.cache, self.digest)
            return {"x": x, **self.criterion.features(images)}

    def sources(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the kept sources of a batch, or compute them now."""
        if not all(key in self.kept for key in batch["key"]):
            return self.compute_sources(batch["image"])
        rows = [self.kept[key] for key in batch["key"]]
        return {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield one update (unrolled), or one for each call of the chain (stepwise)."""
        sources, images = self.sources(batch), batch["image"]

        def criterion(x: Tensor) -> Losses:
            return self.criterion(self.backbone.decode(x), images, sources)

        network = Recomputed(self.network()) if self.checkpointing else self.network()
        for losses, report in CHAINS[self.strategy](network, self.levels, sources["x"], criterion):
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
        chain = {"t0": self.t0, "n_inv": self.n_inv, "n_train": self.n_train, "training": self.strategy}
        return {**super().card(), "kind": "difference", **texts, **chain}

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
        return torch.stack([torch.stack([request.image for request in self.preview]), *edits], 1)

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
