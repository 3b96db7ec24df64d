"""Steps of DiffusionCLIP that are not training: pictures of another domain, and the baseline that optimises latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from editkit.backbones.base import Backbone
from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.rng import batch_noise
from editkit.engine.sample import sample
from editkit.losses.clip_direction import log_distance
from editkit.losses.text_edit import TextEdit
from editkit.methods.weakly_supervised.diffusionclip.editor import DiffusionClipEditor
from editkit.training.artefact import Artefact, trained_files
from editkit.training.chain import Recomputed
from editkit.training.editor import images_of, requests_of
from editkit.training.grid import save_grid
from editkit.types import EditRequest, Levels

ARTICLES = ("a ", "an ", "the ")


class Subject(Protocol):
    """What the tasks use of the method (its arguments, see `DiffusionClip`)."""

    backbone: Backbone
    inversion: Inversion
    source_prompt: str
    prompt: str
    t0: int
    n_inv: int
    n_train: int
    checkpointing: bool
    weights: dict[str, float]
    cache: InversionCache | None
    checkpoint_paths: tuple[str, ...]
    unseen_rounds: int
    latent_steps: int
    latent_lr: float
    task_images: int
    run_dir: Path

    def criterions(self) -> Callable[[str, str], TextEdit]: ...

    def editor(self, artefacts: Sequence[Artefact]) -> DiffusionClipEditor: ...


def unseen(method: Subject, data: Any) -> dict[str, Any]:
    """Write run_dir/unseen.png: pictures of any domain, what the original network makes of them, and that edited.

    Pictures are those of the training split: strokes, anime... (data=folder data.root=DIR).
    """
    editor = method.editor(trained_files(method.checkpoint_paths, method.run_dir, "checkpoints"))
    editor.measure = False
    requests = requests_of(data.train_dataset(), method.task_images)
    moved = enter_domain(method.backbone, requests, editor.levels(method.n_train), editor.start, method.unseen_rounds)
    edited = editor.edit([request.with_(image=image) for request, image in zip(requests, moved, strict=True)]).images
    sheet = torch.stack([images_of(requests), moved.cpu(), edited.cpu()], 1)
    return {"file": str(save_grid(sheet, method.run_dir / "unseen.png")), "images": len(requests), "t0": editor.start}


@torch.no_grad()
def enter_domain(backbone: Backbone, requests: Sequence[EditRequest], levels: Levels, t0: int, rounds: int) -> Tensor:
    """Return pictures as the backbone's domain has them, (B, 3, H, W): noised and brought back, `rounds` times.

    As in the released code the noise is that of time t0 - 1, while the way back starts at t0.

    Args:
        requests: the pictures; their keys and seeds decide the noise.
        levels: of the way back.
    """
    device = backbone.device
    keys, seeds = [request.key for request in requests], [request.seed for request in requests]
    x = backbone.encode(images_of(requests).to(device))
    for number in range(rounds):
        noise = batch_noise(x.shape[1:], keys, seed=seeds, purpose=f"diffusionclip/unseen/{number}", device=device)
        x = sample(backbone, backbone.schedule.add_noise(x, t0 - 1, noise), levels)
    return backbone.decode(x)


def latents(method: Subject, data: Any) -> dict[str, Any]:
    """Write run_dir/latents.png: validation images, and what becomes of them if latents are optimised and no network is.

    The paper's baseline: nothing is trained ahead, so that every image takes `latent_steps` passes of its own.
    """
    requests = requests_of(data.validation_dataset(), method.task_images)
    edited, terms = optimise_latents(method, images_of(requests).to(method.backbone.device))
    sheet = torch.stack([images_of(requests), edited.cpu()], 1)
    figures = {name: round(float(term.mean()), 4) for name, term in terms.items()}
    return {"file": str(save_grid(sheet, method.run_dir / "latents.png")), "images": len(requests), **figures}


def optimise_latents(method: Subject, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return edited images and their last losses, (B,) each: Adam on the inverted states, through the training chain.

    The CLIP term is global, -log((1 + cos(E(image), E(text))) / 2), as in the released code.
    """
    backbone, criterion = method.backbone, method.criterions()(method.source_prompt, method.prompt)
    schedule, start = backbone.schedule, backbone.encode(images)
    with torch.no_grad():
        features = criterion.features(images)
        target = criterion.direction.clip.text([with_article(method.prompt)])
        x = method.inversion(start, schedule.levels(method.n_inv, start=method.t0), method.cache).x
    criterion.requires_grad_(False)
    x = x.clone().requires_grad_()
    levels, network = schedule.levels(method.n_train, start=method.t0), Recomputed(backbone) if method.checkpointing else backbone
    adam = torch.optim.Adam([x], lr=method.latent_lr)
    for _ in range(method.latent_steps):
        edited = backbone.decode(sample(network, x, levels))
        likeness = (criterion.direction.clip.image(edited) * target).sum(-1)
        terms = {"clip": criterion.clip_weight * log_distance(likeness), **criterion.closeness(edited, images, features)}
        # summed over the batch: an image's gradient is then the same whatever others are beside it
        (x.grad,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), x)
        adam.step()
    with torch.no_grad():
        return backbone.decode(sample(backbone, x, levels)), {name: term.detach() for name, term in terms.items()}


def with_article(text: str) -> str:
    """Return "a TEXT", as the released code asks, unless the text has an article."""
    return text if text.lower().startswith(ARTICLES) else f"a {text}"
