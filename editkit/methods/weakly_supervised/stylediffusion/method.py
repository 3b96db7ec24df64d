"""Fine-tuning a diffusion model on the style of one picture."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.backbones.clip import ClipEncoder
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError, suggestion
from editkit.methods.weakly_supervised.stylediffusion.editor import StyleDiffusionEditor, styled_by
from editkit.methods.weakly_supervised.stylediffusion.style import Disentanglement, Gray, Removal, style_name, style_picture
from editkit.training.artefact import Artefact
from editkit.training.chain import Criterion, Losses, stepwise
from editkit.training.editor import images_of, requests_of
from editkit.training.finetuned import TunedCopy
from editkit.training.method import OptimizerFactory, SchedulerFactory, Update
from editkit.training.mix import Checkpoint
from editkit.training.share import computed_once, looked_up

REMOVALS = ("gray", "full")


@dataclass(frozen=True)
class Target:
    """What is trained towards.

    Attributes:
        picture: the style picture in its colours, (1, 3, H, W).
        x: it without its style, at the noisiest level, (1, C, h, w).
        criterion: the losses of contents.
    """

    picture: Tensor
    x: Tensor
    criterion: Disentanglement


class StyleDiffusion(TunedCopy):
    """Fine-tune a copy of a pixel model of photographs so that it adds one picture's style to contents without style.

    An epoch has two phases: the style picture is reconstructed from what its style's removal left of it, `style_repeats` times;
    then each content is moved in CLIP's space as the style picture was. Both step after each call of the chain.
    Departures: the contents of an epoch come in a new order each time; a batch that ends an epoch and begins the next comes after
    the next one's first phase; every process takes the whole first phase, so that their number does not matter.

    Args:
        backbone: a model of the domain that has no style, such as photographs; it stays as it is, a copy is trained.
        clip: makes the CLIP whose embeddings of images are compared.
        style: the style picture, see `style_picture`; None = there is one in the trained files that edit.
        content_removal: what is removed of contents: "gray" the colour, which is all of a photograph's style; "full" as of the
            style picture, for paintings.
        t_removal, n_removal: time up to which the style is removed, and the levels up and down: the larger the time, the more
            counts as style.
        t0: time that contents are inverted to (T_trans): the larger, the more style and the less content.
        n_inv, n_train, n_test: levels of inversion, training and editing, all from 0 to t0.
        t_test: another time for editing, above t0 for more style; None = that of the trained file.
        stochastic: edits of noised contents, of which there are many, instead of inverted ones.
        style_repeats: of the first phase of an epoch.
        style_weight, l1_weight, direction_weight: of the reconstruction's squared error and the two terms of contents.
        mix: editing with several trained files: {threshold: weights}, see `Mix`.
        measure: editing also reconstructs each content, to report its PSNR.
        cache: folder of the inversion cache, which serves other styles as well; None = none.

    Raises:
        UsageError: another removal, or a time that the backbone has not.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        clip: Callable[[], ClipEncoder],
        style: str | None,
        content_removal: str = "gray",
        t_removal: int = 601,
        n_removal: int = 40,
        t0: int = 301,
        n_inv: int = 40,
        n_train: int = 6,
        n_test: int = 6,
        t_test: int | None = None,
        stochastic: bool = False,
        style_repeats: int = 50,
        style_weight: float = 1.0,
        l1_weight: float = 10.0,
        direction_weight: float = 1.0,
        mix: Mapping[float, Sequence[float]] | None = None,
        measure: bool = True,
        cache: str | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(backbone, style_name(style or ""), optimizer=optimizer, scheduler=scheduler)
        if content_removal not in REMOVALS:
            raise UsageError(
                f"method.content_removal={content_removal} is unknown.{suggestion(content_removal, REMOVALS)} Choose gray or full"
            )
        self.make_clip, self.style = clip, style
        self.t0, self.n_inv, self.n_train, self.n_test = t0, n_inv, n_train, n_test
        self.t_test, self.stochastic, self.mix, self.measure = t_test, stochastic, mix, measure
        self.style_repeats, self.style_weight = style_repeats, style_weight
        self.weights = {"l1_weight": l1_weight, "direction_weight": direction_weight}
        self.cache = InversionCache(Path(cache)) if cache else None
        self.inversion = Inversion(backbone)
        self.levels = backbone.schedule.levels(n_train, start=t0)
        self.removal = Removal(self.inversion, backbone.schedule.levels(n_removal, start=t_removal), self.cache)
        self.content_removal = self.removal if content_removal == "full" else Gray()
        self.contents = 0  # of an epoch, known when they were seen

    # Training.

    def prepare_training(self) -> None:
        """Load CLIP and the style picture.

        Raises:
            UsageError, UserError: no style picture, or one that cannot be read.
        """
        if self.style is None:
            raise UsageError("stylediffusion trains for the style of one picture: give method.style=FILE")
        self.clip = self.make_clip().to(self.backbone.device)
        picture = style_picture(self.style, self.backbone.sample_shape[1:])
        self.register_buffer("picture", picture[None].to(self.backbone.device), persistent=False)

    def precompute(self, dataset: Any) -> None:
        """Keep every content's inversion and embedding in memory, each process making its share, if the plan shows it again."""
        self.preview, self.contents = requests_of(dataset, 4), len(dataset)
        if self.stepper is None or self.stepper.plan.shown(self.n_train) > len(dataset):
            self.kept = computed_once(dataset, lambda images, keys: self.compute_sources(images))

    @functools.cached_property
    def target(self) -> Target:
        """Return what the style picture says; computed once, by the original network."""
        picture: Tensor = self.picture  # type: ignore[assignment]
        with torch.no_grad(), torch.autocast(picture.device.type, enabled=False):
            without = self.without_style(picture)
            style = self.clip.projected(picture) - self.clip.projected(without)
            return Target(picture, self._inverted(without), Disentanglement(self.clip.projected, style, **self.weights))

    def without_style(self, picture: Tensor) -> Tensor:
        """Return the style picture (1, 3, H, W) without its style: the same kind of picture as contents are.

        A model of coloured pictures gives the removal's result colours, so those are taken away again where contents have none
        (ours; the paper's model of photographs leaves a grey picture grey). Otherwise the style would be to lose colours too.
        """
        without = self.removal(picture)
        return without if self.content_removal is self.removal else self.content_removal(without)

    @torch.no_grad()
    def compute_sources(self, images: Tensor) -> dict[str, Tensor]:
        """Return the noisiest states "x" of the contents of images (B, 3, H, W), by the original network, and their "clip"."""
        images = images.to(self.backbone.device)
        with torch.autocast(images.device.type, enabled=False):  # what is cached serves runs of any precision
            contents = self.content_removal(images)
            return {"x": self._inverted(contents), "clip": self.clip.projected(contents)}

    def _inverted(self, contents: Tensor) -> Tensor:
        levels = self.backbone.schedule.levels(self.n_inv, start=self.t0)
        return self.inversion(self.backbone.encode(contents), levels, self.cache).x

    def sources(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the kept sources of a batch, or compute them now."""
        found = looked_up(self.kept, batch["key"], self.device)
        return self.compute_sources(batch["image"]) if found is None else found

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield an update for each call of the chains: of the style picture where an epoch begins, then of the batch."""
        sources, target = self.sources(batch), self.target
        for _ in range(self.style_repeats * self._epochs_begun()):
            yield from self._walk(target.x, self._reconstruction)
        yield from self._walk(sources["x"], lambda images: target.criterion(images, sources["clip"]))

    def _epochs_begun(self) -> int:
        """Return how many epochs have their first content in the batch that the stepper has just counted."""
        if self.stepper is None or not self.contents:
            return 0
        seen, size = self.stepper.images, self.stepper.plan.batch_size
        return -(-seen // self.contents) + (size - seen) // self.contents

    def _walk(self, x: Tensor, criterion: Criterion) -> Iterator[Update]:
        for losses, report in stepwise(self.network(), self.levels, x, lambda x0: criterion(self.backbone.decode(x0))):
            yield Update("unet", losses, report)

    def _reconstruction(self, images: Tensor) -> Losses:
        return {"style": self.style_weight * F.mse_loss(images, self.target.picture)}, {}

    # What training leaves behind.

    def card(self) -> dict[str, Any]:
        """Return what the exported file says, with the name of the style picture and the two times."""
        chain = {"t0": self.t0, "n_inv": self.n_inv, "n_train": self.n_train, "t_removal": int(self.removal.levels.times[-1])}
        return {**super().card(), "style_picture": self.title, **chain}

    def editor(self, artefacts: Sequence[Artefact]) -> StyleDiffusionEditor:
        """Return what stylises with these files."""
        return self._editor([styled_by(artefact, self.backbone) for artefact in artefacts], mix=self.mix, start=self.t_test)

    def sample_grid(self) -> Tensor | None:
        """Return source and result of a few training images, (4, 2, 3, H, W)."""
        if not self.preview:
            return None
        editor = self._editor([Checkpoint(self.title, self.network(), self.t0)])
        editor.measure = False
        return torch.stack([images_of(self.preview), editor.edit(self.preview).images.cpu()], 1)

    def _editor(self, checkpoints: Sequence[Checkpoint], **settings: Any) -> StyleDiffusionEditor:
        settings |= {"n_inv": self.n_inv, "n_test": self.n_test, "cache": self.cache, "measure": self.measure}
        return StyleDiffusionEditor(
            self.backbone, checkpoints, removal=self.content_removal, stochastic=self.stochastic, **settings
        )
