"""Steps of Asyrp that are not training: calibration, strips and grids of strengths, the mean shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.engine.denoiser import Wrapper
from editkit.engine.invert import DDIM
from editkit.errors import UserError
from editkit.losses.perceptual import Perceptual
from editkit.methods.weakly_supervised.asyrp.editor import AsyrpEditor
from editkit.methods.weakly_supervised.asyrp.process import Tables
from editkit.training.artefact import Artefact, trained_files
from editkit.training.editor import requests_of
from editkit.training.grid import save_grid
from editkit.training.method import slug
from editkit.types import Condition, EditRequest, Levels, Prediction

BATCH = 16  # images at once
SHOWN = 8  # images of a strip or grid


class Subject(Protocol):
    """What the tasks use of the method (its arguments, see `Asyrp`)."""

    backbone: Backbone
    make_perceptual: Callable[[], Any] | None
    n_inv: int
    grid: Callable[[int], Levels]
    edit_threshold: float
    boost_threshold: float
    attribute_paths: tuple[str, ...]
    strengths: tuple[float, ...]
    task_images: int
    run_dir: Path

    def compare_texts(self) -> float: ...

    def editor(self, artefacts: Sequence[Artefact]) -> AsyrpEditor: ...


def calibrate(method: Subject, data: Any) -> dict[str, Any]:
    """Measure the tables on training images, write run_dir/calibration.json, and say which times they give.

    Raises:
        UserError: the recipe names no perceptual network.
    """
    if method.make_perceptual is None:
        raise UserError("calibration needs a feature network: set method.perceptual in the recipe")
    perceptual = Perceptual(method.make_perceptual().to(method.backbone.device))
    images = [request.image.to(method.backbone.device) for request in requests_of(data.train_dataset(), method.task_images)]
    batches = [torch.stack(images[k : k + BATCH]) for k in range(0, len(images), BATCH)]
    tables = measure(method.backbone, perceptual, batches, method.grid(method.n_inv))
    path = tables.write(method.run_dir / "calibration.json")
    cosine = method.compare_texts()
    figures = {"file": str(path), "images": len(images), "text_cosine": round(cosine, 4)}
    for name, time in (
        ("t_edit", lambda: tables.t_edit(cosine, method.edit_threshold)),
        ("t_boost", lambda: tables.t_boost(method.boost_threshold)),
    ):
        try:
            figures[name] = time()
        except UserError as error:
            figures[name] = f"none: {error}"
    return figures


def strip(method: Subject, data: Any) -> dict[str, Any]:
    """Write run_dir/strip.png: validation images by row, strengths by column, all attributes at the same strength."""
    editor = _editor(method)
    row = torch.linspace(*_range(method))
    edits = editor.sweep(requests_of(data.validation_dataset(), SHOWN), row[:, None].expand(-1, len(editor.attributes)))
    return {"file": str(save_grid(edits, method.run_dir / "strip.png")), "strengths": [round(s, 3) for s in row.tolist()]}


def grid(method: Subject, data: Any) -> dict[str, Any]:
    """Write run_dir/grid-KEY.png for a few validation images: one attribute's strength by row, the other's by column.

    Raises:
        UserError: not two attributes.
    """
    editor = _editor(method)
    if len(editor.attributes) != 2:
        raise UserError(f"a grid takes two trained files, method.attributes=[A,B]; got {len(editor.attributes)}")
    side = torch.linspace(*_range(method))
    pairs = torch.cartesian_prod(side, side)
    requests = requests_of(data.validation_dataset(), 2)
    edits = editor.sweep(requests, pairs).unflatten(1, (len(side), len(side)))
    files = [
        save_grid(one, method.run_dir / f"grid-{slug(request.key)}.png") for request, one in zip(requests, edits, strict=True)
    ]
    rows, columns = (attribute.name for attribute in editor.attributes)
    return {"files": ", ".join(map(str, files)), "rows": rows, "columns": columns}


def mean_delta(method: Subject, data: Any) -> dict[str, Any]:
    """Write each trained file's mean shift per time and its global shift, averaged over training images, to run_dir/export."""
    requests = requests_of(data.train_dataset(), method.task_images)
    batches = [requests[k : k + BATCH] for k in range(0, len(requests), BATCH)]
    files = []
    for artefact in trained_files(method.attribute_paths, method.run_dir, "attributes"):
        for mean in mean_shifts(method.editor([artefact]), artefact, batches):
            files.append(mean.save(method.run_dir / "export" / f"{slug(mean.name)}.safetensors"))
    return {"files": ", ".join(map(str, files)), "images": len(requests)}


class _Watch(Wrapper):
    """A denoiser that measures every query on the way."""

    def __init__(self, denoiser: Backbone, distance: Callable[[Tensor], Tensor]) -> None:
        self.denoiser, self.distance = denoiser, distance
        self.rows: dict[float, tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> Prediction:
        pred = self.denoiser(x, t, cond)
        self.rows[float(t)] = (self.distance(pred.x0).cpu(), self.distance(x).cpu())
        return pred


@torch.no_grad()
def measure(backbone: Backbone, perceptual: Any, batches: Sequence[Tensor], levels: Levels) -> Tables:
    """Measure the tables; each estimate is kept at its own time.

    Args:
        perceptual: a `Perceptual` loss; states are not clamped.
        batches: images in [-1, 1], (B, 3, H, W) each.
        levels: the inversion's.
    """
    rows: dict[float, list[tuple[Tensor, Tensor]]] = {}
    for images in batches:
        reference = perceptual.features(images)
        watch = _Watch(backbone, lambda x, reference=reference: perceptual(x, reference))
        top = DDIM(query="source").invert(watch, images, levels).x
        watch(top, levels.times[-1])
        for t, row in watch.rows.items():
            rows.setdefault(t, []).append(row)
    means = {t: [torch.cat(column).double().mean().item() for column in zip(*found, strict=True)] for t, found in rows.items()}
    curves = [tuple((t, means[t][which]) for t in sorted(means)) for which in (0, 1)]
    return Tables(*curves, backbone=backbone.digest())


def mean_shifts(editor: AsyrpEditor, artefact: Artefact, batches: Sequence[Sequence[EditRequest]]) -> list[Artefact]:
    """Return the mean shift per time over these requests, and the one over all times too, as artefacts.

    Args:
        artefact: what the editor's only attribute was loaded from.
        batches: the requests to average over, in batches.
    """
    (attribute,) = editor.attributes
    sums: dict[float, Tensor] = {}

    def recorded(h: Tensor, temb: Tensor, t: float) -> Tensor:
        shift = attribute.delta(h, temb, t)
        sums[t] = sums.get(t, 0) + shift.double().sum(0).cpu()
        return shift

    watched = copy(editor)
    watched.attributes, watched.measure = [replace(attribute, delta=recorded)], False
    for requests in batches:
        watched.edit(requests)
    times = sorted(sums)
    mean = torch.stack([sums[t] for t in times]).float() / sum(len(requests) for requests in batches)
    middle = times[len(times) // 2]
    kinds = {"mean": (mean, times), "global": (mean.mean(0, keepdim=True), [middle])}
    return [
        Artefact(f"{artefact.name} ({kind})", {"values": values}, artefact.strength, {**artefact.card, "kind": kind, "times": at})
        for kind, (values, at) in kinds.items()
    ]


def _editor(method: Subject) -> AsyrpEditor:
    editor = method.editor(trained_files(method.attribute_paths, method.run_dir, "attributes"))
    editor.measure = False
    return editor


def _range(method: Subject) -> tuple[float, float, int]:
    low, high, count = method.strengths
    return float(low), float(high), int(count)
