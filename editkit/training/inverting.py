"""Editors that begin with an inversion and edit on the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.sample import sample
from editkit.metrics.images import psnr
from editkit.training.editor import Editor, by_steps, images_of
from editkit.types import EditRequest, Levels


@dataclass
class Inverted:
    """Images at the noisiest level: what an edit at any strength starts from.

    Attributes:
        x: (B, C, H, W), in the order of the requests.
        calls: network calls of the inversion, per image.
        reconstruction_psnr: of the plain way back in dB, per image; empty if it was not measured.
    """

    x: Tensor
    calls: list[int]
    reconstruction_psnr: list[float]


class InvertingEditor(Editor):
    """Inverts images by DDIM; a subclass writes `edit`, which starts from what `prepare` returns.

    Args:
        backbone: the original network, frozen.
        start: time of the noisiest level, up and down; None = the last training time.
        n_inv: levels of the inversion.
        n_test: levels of the generation; a request's `steps` replaces both numbers.
        cache: keeps inversions for later calls.
        measure: reconstruct each image as well and report the PSNR, which costs as many calls as a plain generation.
    """

    def __init__(
        self, backbone: Backbone, start: float | None, *, n_inv: int, n_test: int, cache: InversionCache | None, measure: bool
    ) -> None:
        self.backbone, self.start, self.n_inv, self.n_test = backbone, start, n_inv, n_test
        self.cache, self.measure = cache, measure
        self.inversion = Inversion(backbone)

    def levels(self, n: int) -> Levels:
        """Return the n levels from 0 to the start."""
        return self.backbone.schedule.levels(n, start=self.start)

    @torch.no_grad()
    def prepare(self, requests: Sequence[EditRequest]) -> Inverted:
        """Invert the images of the requests; it serves every strength and every editor of this backbone and start."""
        images = images_of(requests).to(self.backbone.device)
        start = self.backbone.encode(images)
        x, calls, quality = torch.empty_like(start), [0] * len(requests), [0.0] * len(requests)
        for steps, rows in by_steps(requests, self.n_inv):
            x[rows] = self.inversion(start[rows], self.levels(steps), self.cache).x
            for row in rows:
                calls[row] = steps - 1
        if self.measure:
            for steps, rows in by_steps(requests, self.n_test):
                again = self.backbone.decode(sample(self.backbone, x[rows], self.levels(steps)))
                for row, figure in zip(rows, psnr(again, images[rows]).tolist(), strict=True):
                    quality[row] = figure
        return Inverted(x, calls, quality if self.measure else [])
