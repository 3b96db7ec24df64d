"""Training a shift of the bottleneck: one optimiser step at every level of every image's way down."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.clip import ClipEncoder
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.errors import UsageError, UserError, suggestion
from editkit.losses.clip_direction import DirectionalClip, log_distance
from editkit.losses.perceptual import FeatureStages
from editkit.methods.weakly_supervised.asyrp import tasks
from editkit.methods.weakly_supervised.asyrp.editor import AsyrpEditor, attribute_of, start_of
from editkit.methods.weakly_supervised.asyrp.process import Attribute, Phases, Sources, Tables
from editkit.networks.delta import DELTAS
from editkit.training.editor import images_of, requests_of
from editkit.training.method import Artefact, Method, OptimizerFactory, SchedulerFactory, Update
from editkit.training.share import Rows, computed_once, looked_up
from editkit.types import EditRequest, Prediction

CLIP_SOURCES = ("x0", "p_src")


class Asyrp(Method):
    """Learn a delta block that moves a frozen model's images from one text to another.

    Args:
        backbone: the frozen pixel model.
        clip: makes the CLIP whose directions guide the training.
        prompt: what edited images should show ("a smiling face").
        source_prompt: what the images show ("a face").
        n_inv, n_train, n_test: levels of inversion, training and editing.
        t_start: noisiest time of all of them; None = the last training time, as in the paper. A small model inverts poorly
            above the time at which its images take shape.
        t_edit: the shift acts from this time upwards; None = by `tables` and the texts.
        t_boost: below this time steps add noise; None = by `tables`.
        tables: distances along the inversion: a file that the task `calibrate` wrote, or the same as a mapping.
        edit_threshold, boost_threshold: distances that decide t_edit (times the texts' cosine) and t_boost.
        clip_weight, l1_weight: of the two losses; the second also times the texts' cosine.
        text_cosine: the texts' cosine that both weigh with; None = the CLIP's own. A CLIP trained on other data than the
            published ones may spread texts so far that the cosine is negative, and the second loss would push away.
        clip_source: image that the CLIP direction starts from: "x0" the real one (released code), "p_src" the frozen
            model's estimate at the same time (the paper's equation).
        zero_init: start from no shift.
        gating: how several attributes share their intervals, "own" or "official" (see `process.gated`).
        measure: editing also reconstructs each image, to report its PSNR.
        cache: folder of the inversion cache; None = none.
        perceptual: makes the feature network of the task `calibrate`.
        attributes: trained files that the tasks `strip`, `grid` and `mean_delta` use.
        strengths: lowest, highest and number of strengths of a strip or a side of a grid.
        task_images: images that a task uses.
        run_dir: folder that tasks write to.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        clip: Callable[[], ClipEncoder],
        prompt: str,
        source_prompt: str,
        n_inv: int = 40,
        n_train: int = 40,
        n_test: int = 40,
        t_start: float | None = None,
        t_edit: float | None = None,
        t_boost: float | None = None,
        tables: str | Mapping[str, Any] | None = None,
        edit_threshold: float = 0.33,
        boost_threshold: float = 1.2,
        clip_weight: float = 0.8,
        l1_weight: float = 3.0,
        text_cosine: float | None = None,
        clip_source: str = "x0",
        zero_init: bool = False,
        gating: str = "own",
        measure: bool = True,
        cache: str | None = None,
        perceptual: Callable[[], FeatureStages] | None = None,
        attributes: Sequence[str] = (),
        strengths: Sequence[float] = (-1.0, 1.0, 7),
        task_images: int = 100,
        run_dir: str = ".",
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if clip_source not in CLIP_SOURCES:
            raise UsageError(
                f"method.clip_source={clip_source} is unknown.{suggestion(clip_source, CLIP_SOURCES)} Choose x0 or p_src"
            )
        self.backbone = backbone
        self.make_clip, self.make_perceptual = clip, perceptual
        self.prompt, self.source_prompt = prompt, source_prompt
        self.n_inv, self.n_train, self.n_test = n_inv, n_train, n_test
        self.t_start, self.t_edit, self.t_boost = t_start, t_edit, t_boost
        self.tables, self.edit_threshold, self.boost_threshold = tables, edit_threshold, boost_threshold
        self.clip_weight, self.l1_weight, self.clip_source = clip_weight, l1_weight, clip_source
        self.given_cosine, self.gating, self.measure = text_cosine, gating, measure
        self.cache = InversionCache(Path(cache)) if cache else None
        self.inversion = Inversion(backbone)
        self.attribute_paths, self.strengths = tuple(attributes), tuple(strengths)
        self.task_images, self.run_dir = task_images, Path(run_dir)
        self.delta = DELTAS[backbone.style](backbone.bottleneck_shape[0], backbone.time_width, zero_init=zero_init)
        self.grid = partial(backbone.schedule.levels, start=t_start)
        self.levels = self.grid(n_train)
        self.kept: Rows = {}
        self.preview: list[EditRequest] = []

    # Training.

    def prepare_training(self) -> None:
        """Load the CLIP and decide where the shift acts.

        Raises:
            UserError: no t_edit or t_boost and no tables, or an interval without a level of the grid.
        """
        self.compare_texts()
        self.phases = self._phases()
        self.edited = self.phases.edited(self.levels)
        if not self.edited:
            raise UserError(
                f"none of the {self.n_train} training levels (up to {self.levels.times[-1]:g}) reaches "
                f"t_edit={self.phases.t_edit}: lower method.t_edit or raise method.t_start"
            )

    def compare_texts(self) -> float:
        """Load the CLIP, keep the direction between the texts, and return their cosine."""
        self.direction = DirectionalClip(self.make_clip().to(self.backbone.device), self.source_prompt, self.prompt)
        self.text_cosine = self.direction.text_cosine if self.given_cosine is None else self.given_cosine
        return self.text_cosine

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the delta block."""
        return {"delta": self.delta.parameters()}

    def precompute(self, dataset: Any) -> None:
        """Keep every image's inversion, frozen trajectory and CLIP features in memory, each process making its share.

        Images that the plan shows only once are left to their batch: keeping them would save nothing.
        """
        self.preview = requests_of(dataset, 4)
        plan = self.stepper.plan if self.stepper else None
        if plan is None or plan.images is None or plan.images > len(dataset):
            self.kept = computed_once(dataset, lambda images, keys: vars(self.compute_sources(images)))

    @torch.no_grad()
    def compute_sources(self, images: Tensor) -> Sources:
        """Invert images (B, 3, H, W) and walk them down without an edit."""
        images = images.to(self.backbone.device)
        x = self.inversion(self.backbone.encode(images), self.grid(self.n_inv), self.cache).x
        estimates: list[Tensor] = []
        sample(self.backbone, x, self.levels, stop=self.edited[-1] - 1, on_step=lambda i, j, x, p: estimates.append(p.x0))
        x0 = torch.stack(estimates, 1)
        if self.clip_source == "x0":
            features = self.direction.features(images)[:, None]
        else:
            features = torch.stack([self.direction.features(self.backbone.decode(estimate)) for estimate in estimates], 1)
        return Sources(x, x0, features)

    def sources(self, batch: Mapping[str, Any]) -> Sources:
        """Return the kept sources of a batch, or compute them now."""
        found = looked_up(self.kept, batch["key"], self.device)
        return self.compute_sources(batch["image"]) if found is None else Sources(**found)

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield one update per edited level; no gradient crosses levels, and the next state is that of before the update."""
        sources = self.sources(batch)
        x = sources.x
        for k, i in enumerate(self.edited):
            pred = self.predict(x, self.levels.times[i])
            losses, report = self.losses(pred.x0, sources.x0[:, k], sources.features[:, min(k, sources.features.shape[1] - 1)])
            x = ddim(self.levels, i, i - 1, x, pred, (), None).detach()
            yield Update("delta", losses, report)

    def predict(self, x: Tensor, t: float) -> Prediction:
        """Return x0 of the shifted bottleneck, with gradients to the delta block, and eps of the plain one."""
        # the plain pass and the encoder are left out of the graph, which halves the cost of the backward pass
        with torch.no_grad():
            h, finish = self.backbone.halves(x, t)
            (plain,) = finish([h])
            temb = self.backbone.time_embedding(t)
        (shifted,) = finish([h + self.delta(h.float(), temb.float()).to(h.dtype)])
        return Prediction(x0=shifted.x0, eps=plain.eps)

    def losses(self, edited: Tensor, source: Tensor, features: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted losses per image and the CLIP cosine, for estimates P_edit and P_src (B, C, H, W)."""
        with torch.autocast(edited.device.type, enabled=False):  # the direction's guards are below what bf16 resolves
            cosine = self.direction.cosine(self.backbone.decode(edited), features)
            l1 = (edited - source).abs().mean((1, 2, 3))
        terms = {"clip": self.clip_weight * log_distance(cosine), "l1": self.l1_weight * self.text_cosine * l1}
        return terms, {"clip_direction": cosine.detach()}

    def dummy_batch(self) -> dict[str, Any]:
        """Return two random images."""
        shape = (2, 3, *self.backbone.sample_shape[1:])
        return {"image": torch.rand(shape, device=self.device) * 2 - 1, "key": ["dummy/0", "dummy/1"]}

    def _phases(self) -> Phases:
        tables = Tables.read(self.tables) if self.tables is not None else None
        if tables is None and (self.t_edit is None or self.t_boost is None):
            raise UserError(
                "method.t_edit and method.t_boost must be given as times, or method.tables as the file that "
                "`editkit task asyrp calibrate` writes"
            )
        if tables is not None and tables.backbone not in ("", self.backbone.digest()):
            raise UserError(
                f"method.tables={self.tables} was measured on another backbone: run `editkit task asyrp calibrate` again"
            )
        if self.t_edit is None and math.isnan(self.text_cosine):
            raise UsageError(
                "method.t_edit follows from how near the two texts are, which only the CLIP's weights tell: give it as a time, "
                "such as method.t_edit=513"
            )
        t_edit = tables.t_edit(self.text_cosine, self.edit_threshold) if self.t_edit is None else self.t_edit
        t_boost = tables.t_boost(self.boost_threshold) if self.t_boost is None else self.t_boost
        return Phases(t_edit, t_boost)

    # What training leaves behind.

    def artefacts(self) -> list[Artefact]:
        """Return the delta block, named after the text that it edits towards."""
        return [Artefact(self.prompt, self.delta.state_dict(), card=self.card())]

    def card(self) -> dict[str, Any]:
        """Return what the exported file says: the interval that it acts in and the backbone that it belongs to."""
        trained = {
            "t_edit": self.phases.t_edit,
            "t_boost": self.phases.t_boost,
            "t_start": self.t_start,
            "text_cosine": self.text_cosine,
        }
        return {
            **super().card(),
            "kind": "network",
            "prompt": self.prompt,
            "source_prompt": self.source_prompt,
            **trained,
            "n_inv": self.n_inv,
            "n_train": self.n_train,
            "style": self.backbone.style,
            "bottleneck_shape": list(self.backbone.bottleneck_shape),
            "time_width": self.backbone.time_width,
            "backbone_digest": self.backbone.digest(),
        }

    def editor(self, artefacts: Sequence[Artefact]) -> AsyrpEditor:
        """Return what edits with these files."""
        attributes = [attribute_of(artefact, self.backbone) for artefact in artefacts]
        return self._editor(attributes, start=start_of(artefacts, self.t_start))

    def sample_grid(self) -> Tensor | None:
        """Return source, half strength and full strength of a few training images, (4, 3, 3, H, W)."""
        if not self.preview:
            return None
        block = self.delta
        own = Attribute(self.prompt, lambda h, temb, t: block(h, temb), self.phases, self.n_train, self.text_cosine)
        edits = self._editor([own], start=self.t_start, measure=False).sweep(self.preview, torch.tensor([[0.5], [1.0]])).cpu()
        return torch.cat([images_of(self.preview)[:, None], edits], 1)

    def _editor(self, attributes: Sequence[Attribute], *, start: float | None, measure: bool | None = None) -> AsyrpEditor:
        return AsyrpEditor(
            self.backbone,
            attributes,
            n_inv=self.n_inv,
            n_test=self.n_test,
            t_start=start,
            gating=self.gating,
            cache=self.cache,
            measure=self.measure if measure is None else measure,
        )

    # Steps that are not training.

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """Return calibrate, strip, grid and mean_delta."""
        steps = (tasks.calibrate, tasks.strip, tasks.grid, tasks.mean_delta)
        return {step.__name__: partial(step, self) for step in steps}
