"""Training of Asyrp and DiffusionCLIP beside loops in the manner of their released code, in one run on the same weights.

    python -m tests.benchmarks.pixel_training --images 16 --epochs 3 --update README.md

The loops below do what the released code does with its time, in our own words: one image at a time in float32; each image is
also regenerated after its inversion, though nothing reads the result; the source image goes through CLIP again for every
loss, and Asyrp's frozen trajectory is walked again in every epoch. Levels, losses, images, epochs, optimiser and threads are
the same on both sides; the released code's habit of inverting images that it never uses is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.data.items import collate
from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.recipe import build, compose
from editkit.types import Levels
from tests.benchmarks.measuring import machine, positive, publish


@dataclass
class Work:
    """What both sides have to do.

    Attributes:
        method: ours, built from its recipe, untrained.
        items: the data set.
        batch_size: ours; the released loops take one image at a time.
    """

    method: Any
    items: Sequence[Mapping[str, Any]]
    epochs: int
    batch_size: int


def work(recipe: str, images: int, epochs: int, overrides: Sequence[str] = ()) -> Work:
    """Build a recipe's method and its first images."""
    cfg = compose([f"recipe={recipe}", f"data.train={images}", *overrides])
    dataset = build(cfg, "data").train_dataset()
    method = build(cfg, "method")
    method.prepare_training()
    method.freeze_rest()
    method.train()
    return Work(method, [dataset[k] for k in range(images)], epochs, int(cfg.trainer.batch_size))


# Ours, as `editkit train` runs it.


def ours(job: Work, precision: str) -> dict[str, float]:
    """Return the seconds of precomputation and of training."""
    half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with half:
        before = time.perf_counter()
        job.method.precompute(job.items)
        between = time.perf_counter()
        parameters = [p for group in job.method.trainable().values() for p in group]
        optimizer = torch.optim.Adam(parameters, lr=1e-5)
        for _ in range(job.epochs):
            for start in range(0, len(job.items), job.batch_size):
                batch = collate(list(job.items[start : start + job.batch_size]))
                for update in job.method.updates(batch):
                    _step(optimizer, update.total())
    return {"precompute": between - before, "train": time.perf_counter() - between}


# In the manner of the released code.


def released_asyrp(job: Work) -> dict[str, float]:
    """Return the seconds of precomputation and of training."""
    method, backbone, direction = job.method, job.method.backbone, job.method.direction
    optimizer = torch.optim.Adam(method.delta.parameters(), lr=1e-5)
    before = time.perf_counter()
    latents = [_invert_and_regenerate(backbone, item["image"][None], method.grid(method.n_inv)) for item in job.items]
    between = time.perf_counter()
    levels, edited = method.levels, set(method.edited)
    for _ in range(job.epochs):
        for item, latent in zip(job.items, latents, strict=True):
            image, x, frozen = item["image"][None], latent, latent
            for i in range(len(levels) - 1, min(edited) - 1, -1):
                with torch.no_grad():
                    source = backbone(frozen, levels.times[i])
                    frozen = ddim(levels, i, i - 1, frozen, source, (), None)
                if i not in edited:
                    x = frozen
                    continue
                pred = method.predict(x, levels.times[i])
                with torch.no_grad():
                    features = direction.features(image if method.clip_source == "x0" else source.x0)
                losses, _ = method.losses(pred.x0, source.x0, features)
                x = ddim(levels, i, i - 1, x, pred, (), None).detach()
                _step(optimizer, sum(value.mean() for value in losses.values()))
    return {"precompute": between - before, "train": time.perf_counter() - between}


def released_diffusionclip(job: Work) -> dict[str, float]:
    """Return the seconds of precomputation and of training, through the whole chain ("quick")."""
    method, backbone, network = job.method, job.method.backbone, job.method.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    before = time.perf_counter()
    levels = backbone.schedule.levels(method.n_inv, start=method.t0)
    latents = [_invert_and_regenerate(backbone, item["image"][None], levels) for item in job.items]
    between = time.perf_counter()
    for _ in range(job.epochs):
        for item, latent in zip(job.items, latents, strict=True):
            image = item["image"][None]
            edited = sample(network, latent, method.levels)
            losses, _ = method.criterion(edited, image, method.criterion.features(image))
            _step(optimizer, sum(value.mean() for value in losses.values()))
    return {"precompute": between - before, "train": time.perf_counter() - between}


@torch.no_grad()
def _invert_and_regenerate(backbone: Backbone, image: Tensor, levels: Levels) -> Tensor:
    trajectory = DDIM(query="source").invert(backbone, image, levels)
    latent = trajectory.states[trajectory.start]
    sample(backbone, latent, levels)
    return latent


def _step(optimizer: torch.optim.Optimizer, loss: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


RELEASED: Mapping[str, Callable[[Work], dict[str, float]]] = {"asyrp": released_asyrp, "diffusionclip": released_diffusionclip}


def table(images: int, epochs: int) -> str:
    """Measure and return the table in Markdown."""
    lines = [
        "| training of | released manner, s | editkit float32, s | times faster | editkit bfloat16, s | times faster |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for recipe, released in RELEASED.items():
        theirs = released(work(recipe, images, epochs))
        mine = {precision: ours(work(recipe, images, epochs), precision) for precision in ("32", "bf16")}
        for part in ("precompute", "train"):
            cells = [f"{theirs[part]:.1f}"]
            for seconds in mine.values():
                cells += [f"{seconds[part]:.1f}", f"{theirs[part] / seconds[part]:.1f}"]
            lines.append(f"| {recipe}, {part} | {' | '.join(cells)} |")
        whole = {name: sum(seconds.values()) for name, seconds in {"theirs": theirs, **mine}.items()}
        ratios = [f"{whole[name]:.1f} | **{whole['theirs'] / whole[name]:.1f}**" for name in mine]
        lines.append(f"| {recipe}, both | {whole['theirs']:.1f} | {' | '.join(ratios)} |")
    return "\n".join([*lines, "", f"{images} toy faces, {epochs} epochs; {machine()}", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=16)
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--update", type=Path, help="Markdown file with the lines <!-- speed --> and <!-- /speed -->")
    options = parser.parse_args(arguments)
    publish(parser, "speed", options.update, partial(table, options.images, options.epochs))


if __name__ == "__main__":
    main()
