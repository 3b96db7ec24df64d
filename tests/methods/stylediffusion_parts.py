"""Tiny parts for the tests of StyleDiffusion, and an epoch of it written anew, with switches for the easy wrong versions."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import torch
import torch.nn.functional as F

from editkit.methods.weakly_supervised.stylediffusion import StyleDiffusion, StyleDiffusionEditor
from editkit.methods.weakly_supervised.stylediffusion.style import Gray
from editkit.training.mix import Checkpoint
from tests.methods.asyrp_parts import ready, tiny_backbone

T0, T_REMOVAL, N, N_TRAIN, REPEATS, RATE = 301, 601, 6, 3, 2, 0.02
BATCHES = ([0, 1], [2, 3])  # an epoch of four images


class TinyClip(torch.nn.Module):
    """Embeds an image by its coarse pixels and the contrast of each channel, at a length of its own; counts images."""

    def __init__(self):
        super().__init__()
        self.seen = 0
        self.register_buffer("mixing", torch.randn(15, 7, generator=torch.Generator().manual_seed(5)))

    def projected(self, images):
        self.seen += len(images)
        return torch.cat([F.adaptive_avg_pool2d(images, 2).flatten(1), images.std((2, 3))], 1) @ self.mixing

    def image(self, images):
        return F.normalize(self.projected(images), dim=-1)


def tiny_method(backbone=None, clip=None, **changes) -> StyleDiffusion:
    settings = {
        "style": "toy:neon",
        "t_removal": T_REMOVAL,
        "n_removal": N,
        "t0": T0,
        "n_inv": N,
        "n_train": N_TRAIN,
        "n_test": N,
        "style_repeats": REPEATS,
        "measure": False,
        "optimizer": partial(torch.optim.SGD, lr=RATE),
    }
    clip = clip or TinyClip()
    return StyleDiffusion(backbone=backbone or tiny_backbone(), clip=lambda: clip, **(settings | changes))


def editor_of(backbone, *networks, **settings) -> StyleDiffusionEditor:
    checkpoints = [Checkpoint(f"network {n}", network, T0) for n, network in enumerate(networks)]
    given = {"n_inv": N, "n_test": N, "measure": False, "removal": Gray()} | settings
    return StyleDiffusionEditor(backbone, checkpoints, **given)


def trained(data, batches=BATCHES, **changes) -> StyleDiffusion:
    method = ready(tiny_method(**changes), steps=1000)
    method.precompute(data)
    for rows in batches:
        method.stepper.run(data.batch(list(rows)))
    return method


# The paper's algorithm on a network that predicts v, by hand.

ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def grid(n, t0):
    return [t0 * k // (n - 1) for k in range(n)]


def move(x, x0, eps, t):
    kept = 1.0 if t < 0 else float(ALPHA_BAR[t])
    return kept**0.5 * x0 + (1 - kept) ** 0.5 * eps


def predicted(network, x, t):
    a, s = float(ALPHA_BAR[t]) ** 0.5, (1 - float(ALPHA_BAR[t])) ** 0.5
    v = network.unet(x, torch.full((len(x),), t)).sample
    return a * x - s * v, a * v + s * x


@torch.no_grad()
def inverted(network, x, n, t0):
    times = grid(n, t0)
    for t, later in itertools.pairwise(times):
        x = move(x, *predicted(network, x, t), later)
    return x


@torch.no_grad()
def brought_back(network, x, n, t0):
    times = grid(n, t0)
    for t, earlier in zip(times[::-1], [*times[-2::-1], -1], strict=True):
        x = move(x, *predicted(network, x, t), earlier)
    return x


def gray(images):
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None].repeat(1, 3, 1, 1)


def removed(network, images):
    return brought_back(network, inverted(network, gray(images), N, T_REMOVAL), N, T_REMOVAL)


def epoch(original, clip, picture, batches, wrong=None):
    """Return the network after one epoch over batches (B, 3, H, W)."""
    network = copy.deepcopy(original).requires_grad_(True)
    descent = torch.optim.SGD(network.parameters(), lr=RATE)
    embed = clip.image if wrong == "unit embeddings" else clip.projected
    without = removed(original, picture)
    if wrong != "colours of the removal":
        without = gray(without)
    style = embed(picture) - (0 if wrong == "the style picture itself" else embed(without))
    wanted = gray(picture) if wrong == "the gray style picture" else picture

    def reconstruction(images):
        return (images - wanted).square().mean()

    def disentanglement(images, contents):
        moved = embed(images) - embed(contents)
        cosine = (moved * style).sum(1) / (moved.norm(dim=1) * style.norm(dim=1))
        return (10 * (moved - style).abs().mean(1) + 1 - cosine).mean()

    def contents_of(images):
        return images if wrong == "coloured contents" else gray(images)

    def walk(x, loss):
        times = grid(N_TRAIN, T0)
        for t, earlier in zip(times[::-1], [*times[-2::-1], -1], strict=True):
            x0, eps = predicted(network, x, t)
            x = move(x, x0, eps, earlier).detach()
            descent.zero_grad()
            loss(x0).backward()
            descent.step()

    start = inverted(original, without, N, T0)
    states = [inverted(original, contents_of(images), N, T0) for images in batches]
    sources = [images if wrong == "contents compared in colour" else contents_of(images) for images in batches]
    if wrong == "one sum of both":
        for x, source in zip(states, sources, strict=True):
            walk(torch.cat([x, start]), lambda y, s=source: disentanglement(y[:-1], s) + REPEATS * reconstruction(y[-1:]))
        return network
    if wrong != "no reconstruction first":
        for _ in range(REPEATS):
            walk(start, reconstruction)
    for x, images, source in zip(states, batches, sources, strict=True):
        if wrong == "inverted by the tuned network":
            x = inverted(network, contents_of(images), N, T0)
        walk(x, lambda y, s=source: disentanglement(y, s))
    return network
