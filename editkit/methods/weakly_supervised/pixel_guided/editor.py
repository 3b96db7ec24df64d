"""Editing by a changed map of parts: invert, follow the map in its region, keep the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.guidance import PLAIN, Clip
from editkit.engine.rng import level_noise
from editkit.engine.sample import Noise, OnStep, sample
from editkit.engine.steps import ddim, ddpm
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.pixel_guided.features import noised_maps, watched
from editkit.methods.weakly_supervised.pixel_guided.guidance import SAMPLERS, PixelGuidance
from editkit.methods.weakly_supervised.pixel_guided.maps import named_parts, region
from editkit.networks.pixel_classifiers import PixelClassifiers
from editkit.training.editor import Editor, draws_of, grouped, images_of
from editkit.types import EditRequest, EditResult, Levels, Prediction

LARGE = 5000 / 65_536  # share of the picture from which a region counts as large
SHALLOW, DEEP = (500, 100.0), (750, 40.0)  # where sampling starts and how strongly it is guided: small regions, large ones


@dataclass(frozen=True)
class Reader:
    """Reads parts off a diffusion network's features.

    Attributes:
        backbone: the network.
        places: blocks whose output is seen.
        steps: a classifier for each of `times`.
        times: rising.
        ensemble: classifiers of the features of `map_times` together.
        map_times: noise levels that maps are read at.
        classes: names of the parts.
    """

    backbone: Backbone
    places: tuple[str, ...]
    steps: PixelClassifiers
    times: tuple[int, ...]
    ensemble: PixelClassifiers
    map_times: tuple[int, ...]
    classes: tuple[str, ...]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return what each member of the ensemble says of images (B, 3, H, W): (M, B, K, H, W)."""
        maps = [part for t in self.map_times for part in noised_maps(self.backbone, images, float(t), self.places)]
        return torch.stack([self.ensemble.on_maps(k, maps, images.shape[2:]) for k in range(self.ensemble.count)])

    def segment(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of images (B, H, W) by majority, and how unsure the ensemble is (B,).

        Unsure is the mean of a tenth of the pixels, those with the largest Jensen-Shannon divergence between the members.
        """
        logits = self.logits(images)
        maps = torch.mode(logits.argmax(2), dim=0).values
        p = logits.softmax(2)
        entropy = lambda q: -(q * q.clamp(min=1e-12).log()).sum(-3)  # noqa: E731
        divergence = (entropy(p.mean(0)) - entropy(p).mean(0)).flatten(1)
        return maps, divergence.topk(max(1, divergence.shape[1] // 10)).values.mean(1)


class PixelGuidedEditor(Editor):
    """Changes images inside the region that the named parts have in their own map or in the changed one.

    A request's strength multiplies the guidance's scale, its sample number gives variants.

    Args:
        reader: the classifiers.
        start, scale: time where sampling starts, strength of the guidance; None takes `SHALLOW` or `DEEP` by the region's size.
        sampler: "ddpm" or "ddim".
        grow: pixels by which the region is grown each way.
        clip: keep estimates of x0 in range.
        final_paste: the pixels outside the region are the image's own in the end, bit for bit; False leaves the last step's noise
            in them, as the released code does.
        cache: keeps inversions.

    Raises:
        UsageError: an unknown sampler, or a start beyond the classifiers' times.
    """

    name = "pixel-guided"
    needs = ("image", "segmentation", "labels")

    def __init__(
        self,
        reader: Reader,
        *,
        start: int | None = None,
        scale: float | None = None,
        sampler: str = "ddpm",
        grow: int = 3,
        clip: bool = True,
        final_paste: bool = True,
        cache: InversionCache | None = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UsageError(f"method.sampler={sampler} is unknown: choose from {', '.join(SAMPLERS)}")
        if start is not None and not reader.times[0] < start <= reader.times[-1]:
            raise UsageError(
                f"method.start={start} is out of range: the classifiers know times up to {reader.times[-1]}, and 0 leaves no step"
            )
        self.reader, self.backbone = reader, reader.backbone
        self.start, self.scale, self.sampler, self.grow = start, scale, sampler, grow
        self.clip, self.final_paste, self.cache = clip, final_paste, cache
        self.inversion = Inversion(reader.backbone)

    def prepare(self, requests: Sequence[EditRequest]) -> Tensor:
        """Return the maps of the images, (B, H, W)."""
        return self.reader.segment(images_of(requests).to(self.backbone.device))[0]

    @torch.no_grad()
    def edit(self, requests: Sequence[EditRequest], state: Tensor | None = None) -> EditResult:
        """Return the edited images, with their regions as masks; scores say how well the changed map is found in them."""
        maps = self.prepare(requests) if state is None else state
        images = images_of(requests).to(self.backbone.device)
        wanted = torch.stack([self._wanted(request) for request in requests]).to(images.device)
        parts = [named_parts(request.labels or "", self.reader.classes) for request in requests]
        areas = torch.stack([region(old, new, own, self.grow) for old, new, own in zip(maps, wanted, parts, strict=True)])
        bare = [region(old, new, own, 0).mean() for old, new, own in zip(maps, wanted, parts, strict=True)]
        depths = [self._depth(request, float(share)) for request, share in zip(requests, bare, strict=True)]
        found, calls = images.clone(), [0.0] * len(requests)
        for (start, steps), rows in grouped((start, request.steps) for (start, _), request in zip(depths, requests, strict=True)):
            levels = self.levels(start, steps)
            scale = torch.tensor([depths[row][1] for row in rows])
            found[rows] = self._followed(images[rows], wanted[rows], areas[rows], scale, [requests[row] for row in rows], levels)
            for row in rows:
                calls[row] = float(2 * (len(levels) - 1) - levels.entry + len(self.reader.map_times))
        scores = {"network_calls": calls, **self._agreement(found, wanted, areas)}
        return EditResult(found, masks=areas, scores=scores)

    def levels(self, start: int, steps: int | None = None) -> Levels:
        """Return the classifiers' times up to `start`, or about `steps` of them, as levels."""
        times = [t for t in self.reader.times if t <= start]
        if steps is not None and steps < len(times):
            kept = torch.linspace(0, len(times) - 1, max(steps, 2)).round().long().unique().tolist()
            times = [times[k] for k in kept]
        return self.backbone.schedule.levels_at(times, entry=1)

    def _depth(self, request: EditRequest, share: float) -> tuple[int, float]:
        start, scale = DEEP if share > LARGE else SHALLOW
        start = min(start, self.reader.times[-1]) if self.start is None else self.start
        scale = scale if self.scale is None else self.scale
        return start, scale * (1.0 if request.strength is None else request.strength)

    def _wanted(self, request: EditRequest) -> Tensor:
        labels = request.segmentation
        assert labels is not None and request.image is not None
        found, count = labels.reshape(labels.shape[-2:]).round().long(), len(self.reader.classes)
        if found.shape != request.image.shape[1:]:
            raise UserError(f"{request.key}: the map is {tuple(found.shape)}, the image {tuple(request.image.shape[1:])}")
        if int(found.max()) >= count:
            raise UserError(
                f"{request.key}: the map has a part {int(found.max())}, there are {count}: {', '.join(self.reader.classes)}"
            )
        return found

    def _followed(
        self, images: Tensor, wanted: Tensor, areas: Tensor, scale: Tensor, requests: Sequence[EditRequest], levels: Levels
    ) -> Tensor:
        reader, top = self.reader, len(levels) - 1
        x = self.inversion(images, levels, self.cache).x
        drawn = partial(level_noise, images.shape[1:], **draws_of(requests), device=images.device)
        inner = Clip() if self.clip else PLAIN
        with watched(self.backbone, reader.places) as maps:
            guidance = PixelGuidance(
                self._classifier(maps, images.shape[2:]), wanted, areas, levels, scale, sampler=self.sampler, inner=inner
            )
            walk: dict[str, Any] = {"step": ddpm, "noise": drawn(purpose="step")} if self.sampler == "ddpm" else {"step": ddim}
            kept = self._kept(images, areas, levels, drawn(purpose="outside"))
            x = sample(self.backbone, x, levels, start=top, guidance=guidance, on_step=kept, **walk)
        x = x.clamp(-1, 1)
        return torch.where(areas > 0, x, images) if self.final_paste else x

    def _classifier(self, maps: Any, size: Sequence[int]) -> Callable[[float], Tensor]:
        reader = self.reader
        return lambda t: reader.steps.on_maps(reader.times.index(round(t)), [maps[place] for place in reader.places], size)

    def _kept(self, images: Tensor, areas: Tensor, levels: Levels, noise: Noise) -> OnStep:
        def blended(i: int, j: int, x: Tensor, pred: Prediction) -> Tensor:
            outside = levels.signal(i) * images + levels.noise(i) * noise(i)  # of the level left, as in the released code
            return areas * x + (1 - areas) * outside

        return blended

    def _agreement(self, images: Tensor, wanted: Tensor, areas: Tensor) -> dict[str, list[float]]:
        logits = self.reader.logits(images).mean(0)
        inside = areas[:, 0]
        count = inside.sum((1, 2)).clamp(min=1)
        right = ((logits.argmax(1) == wanted) * inside).sum((1, 2)) / count
        error = (F.cross_entropy(logits, wanted, reduction="none") * inside).sum((1, 2)) / count
        return {"map_accuracy": right.tolist(), "map_error": error.tolist()}
