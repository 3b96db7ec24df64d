"""Training the classifiers of pixels, on features that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.backbones.pixel import PixelBackbone
from editkit.data.items import check_holds
from editkit.data.label_map import PALETTE, indexed
from editkit.engine.cache import InversionCache
from editkit.engine.rng import generator
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.pixel_guided.editor import PixelGuidedEditor, Reader
from editkit.methods.weakly_supervised.pixel_guided.features import at_pixels, noised_maps
from editkit.methods.weakly_supervised.pixel_guided.maps import IGNORED, without_specks
from editkit.networks.pixel_classifiers import PixelClassifiers
from editkit.training.artefact import trained_files
from editkit.training.editor import images_of, requests_of
from editkit.training.method import Artefact, Method, OptimizerFactory, SchedulerFactory
from editkit.training.one_file import take
from editkit.training.share import Rows, computed_once, looked_up

KIND = "pixel-classifiers"
SHOWN = 8  # images of a sample grid, with their maps
DATA = "choose data=faces, or data=folder data.root=DIR with part labels in DIR/labels"


class PixelGuided(Method):
    """Train an ensemble that reads maps of parts, and a classifier for each noise level that guides; items: image and labels.

    Departures from the released code: features are kept at some pixels of each image, not at all of them; all classifiers are
    trained side by side for a number of steps, not one by one until they stop improving; classifiers may be a stride of levels
    apart; the noise of the features is of our own generator, so the released classifiers do not fit.

    Args:
        backbone: the pixel model.
        classes: names of the parts, in the order of the labels' numbers.
        places: blocks whose output is seen (`Backbone.places`).
        last, stride: the classifiers' times are 0, stride... up to `last`; 750 and 1 in the paper.
        map_times: noise levels that maps are read at.
        members: of the ensemble.
        pixels: of each image whose features are kept.
        drawn: pixels of a step, for each classifier.
        least: parts of fewer pixels in an image are left out of its labels.
        start, scale, sampler, grow, clip, final_paste: of an edit, see `PixelGuidedEditor`.
        weights: trained files for the task `segment`; the run's own if empty.
        run_dir: folder that the task writes to.
        cache: folder of the inversion cache; None = none.

    Raises:
        UsageError: a model of latents, times that are none, or fewer classes than two.
    """

    kind = KIND

    def __init__(
        self,
        *,
        backbone: Backbone,
        classes: Sequence[str],
        places: Sequence[str],
        last: int = 750,
        stride: int = 1,
        map_times: Sequence[int] = (50, 150, 250),
        members: int = 10,
        pixels: int = 256,
        drawn: int = 64,
        least: int = 20,
        start: int | None = None,
        scale: float | None = None,
        sampler: str = "ddpm",
        grow: int = 3,
        clip: bool = True,
        final_paste: bool = True,
        weights: Sequence[str] = (),
        run_dir: str = "runs/pixel-guided",
        cache: str | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not isinstance(backbone, PixelBackbone):
            raise UsageError("pixel-guided reads parts off a model of pixels, this backbone is one of latents: choose toy_faces")
        if not 2 <= len(classes) <= len(PALETTE):
            raise UsageError(f"method.classes names {len(classes)} parts: give 2 to {len(PALETTE)}, which maps have colours for")
        if not 0 < stride <= last < len(backbone.schedule):
            raise UsageError(
                f"method.last={last}, method.stride={stride}: times go in strides up to {len(backbone.schedule) - 1}"
            )
        self.backbone, self.classes = backbone, tuple(classes)
        self.places, self.map_times = tuple(places), tuple(map_times)
        self.times = tuple(range(0, last + 1, stride))
        self.pixels, self.drawn, self.least = pixels, drawn, least
        width = sum(self._widths())
        self.steps = PixelClassifiers(len(self.times), width, len(self.classes))
        self.ensemble = PixelClassifiers(members, width * len(self.map_times), len(self.classes))
        self.editing: dict[str, Any] = {"start": start, "scale": scale, "sampler": sampler, "grow": grow}
        self.editing |= {"clip": clip, "final_paste": final_paste, "cache": InversionCache(Path(cache)) if cache else None}
        self.weights, self.run_dir = tuple(weights), Path(run_dir)
        PixelGuidedEditor(self.reader(), **self.editing)
        self.kept: Rows = {}
        self.preview: list[Any] = []

    def reader(self) -> Reader:
        """Return what reads parts with the classifiers as they are."""
        return Reader(self.backbone, self.places, self.steps, self.times, self.ensemble, self.map_times, self.classes)

    @torch.no_grad()
    def _widths(self) -> list[int]:
        blank = torch.zeros(1, *self.backbone.sample_shape, device=self.backbone.device)
        return [part.shape[1] for part in noised_maps(self.backbone, blank, 0.0, self.places)]

    # Training.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return the parameters of all classifiers."""
        return {"classifiers": [*self.steps.parameters(), *self.ensemble.parameters()]}

    def precompute(self, dataset: Any) -> None:
        """Keep the features of some pixels of each image, each process making its share.

        Raises:
            UsageError: data without part labels.
        """
        check_holds(dataset[0], ("image", "labels"), "pixel-guided", DATA)
        if dataset[0]["labels"] is None:
            raise UsageError(f"pixel-guided learns from part labels, which these data lack: {DATA}")
        self.preview = requests_of(dataset, SHOWN)
        self.kept = computed_once(dataset, self.features)

    @torch.no_grad()
    def features(self, images: Tensor, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return features of pixels of images (B, 3, H, W), "steps" (B, T, P, D) and "maps" (B, P, 3 D), in half precision."""
        images, size = images.to(self.backbone.device), images.shape[2:]
        chosen = self._chosen(keys, size).to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            seen = lambda t: at_pixels(noised_maps(self.backbone, images, float(t), self.places), size, chosen).half()  # noqa: E731
            together = torch.cat([seen(t) for t in self.map_times], 2)
            return {"steps": torch.stack([seen(t) for t in self.times], 1), "maps": together}

    def _chosen(self, keys: Sequence[str], size: Sequence[int]) -> Tensor:
        """Return the pixels (B, P) of images that are kept, by their keys alone."""
        count = size[0] * size[1]
        draws = [generator(seed=0, key=key, purpose="pixel-guided/pixels") for key in keys]
        return torch.stack([torch.randperm(count, generator=draw)[: self.pixels] for draw in draws])

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the cross entropies of a draw of pixels, summed over the classifiers."""
        kept = looked_up(self.kept, batch["key"], self.device)
        kept = self.features(batch["image"], batch["key"]) if kept is None else kept
        labels = without_specks(batch["labels"].to(self.device), self.least).flatten(1)
        labels = labels.gather(1, self._chosen(batch["key"], batch["image"].shape[2:]).to(self.device))
        one = torch.randint(labels.numel(), (self.drawn,), device=self.device)
        own = torch.randint(labels.numel(), (self.ensemble.count, self.drawn), device=self.device)
        image, pixel = torch.div(one, labels.shape[1], rounding_mode="floor"), one % labels.shape[1]
        steps, maps = kept["steps"][image, :, pixel].transpose(0, 1).float(), kept["maps"].flatten(0, 1)[own].float()
        labels = labels.flatten()
        found = {"steps": (self.steps(steps), labels[one].expand(len(self.times), -1))}
        found["maps"] = (self.ensemble(maps), labels[own])
        return {name: _cross_entropy(logits, wanted) for name, (logits, wanted) in found.items()}

    def sample_grid(self) -> Tensor | None:
        """Return a few images and the maps that are read off them, (N, 2, 3, H, W)."""
        if not self.preview:
            return None
        images = images_of(self.preview)
        maps = self.reader().segment(images.to(self.device))[0].cpu()
        colours = torch.tensor(PALETTE)[maps].movedim(-1, 1) / 127.5 - 1
        return torch.stack([images, colours], 1)

    def dummy_batch(self) -> dict[str, Any]:
        """Return two images of noise with two parts."""
        images = torch.rand(2, *self.backbone.sample_shape, device=self.device) * 2 - 1
        labels = torch.zeros(2, *images.shape[2:], dtype=torch.int64, device=self.device)
        labels[:, : images.shape[2] // 2] = 1
        return {"image": images, "labels": labels, "key": ["dummy/0", "dummy/1"]}

    def card(self) -> dict[str, Any]:
        """Return what an exported file says about itself."""
        return {**super().card(), "kind": KIND, "classes": list(self.classes)}

    # Editing.

    def editor(self, artefacts: Sequence[Artefact]) -> PixelGuidedEditor:
        """Return what edits with trained classifiers.

        Raises:
            UsageError, UserError: several files, or one that does not fit.
        """
        take(self, artefacts, KIND, PixelGuidedEditor.name)
        return PixelGuidedEditor(self.reader(), **self.editing)

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """Return segment: write the maps of test images, for a paint program."""
        return {"segment": self.segment}

    def segment(self, data: Any) -> Mapping[str, Any]:
        """Write run_dir/maps/KEY.png for each test image, in the palette's colours."""
        take(self, trained_files(self.weights, self.run_dir, "weights"), KIND, PixelGuidedEditor.name)
        dataset, unsure = data.test_dataset(), []
        for k in range(len(dataset)):
            item = dataset[k]
            maps, doubt = self.reader().segment(item["image"][None].to(self.backbone.device))
            path = (self.run_dir / "maps" / item["key"]).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            indexed(maps[0].cpu().numpy().astype("uint8")).save(path)
            unsure.append(float(doubt))
        return {"maps": len(unsure), "folder": str(self.run_dir / "maps"), "unsure (mean)": round(sum(unsure) / len(unsure), 4)}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over M classifiers of their mean cross entropies, of logits (M, N, K) and labels (M, N)."""
    error = F.cross_entropy(logits.float().flatten(0, 1), labels.reshape(-1), ignore_index=IGNORED, reduction="none")
    counted = (labels != IGNORED).sum(1).clamp(min=1)
    return (error.view(labels.shape).sum(1) / counted).sum()
