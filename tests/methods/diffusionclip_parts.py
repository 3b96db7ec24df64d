"""Tiny parts for the tests of DiffusionCLIP, and helpers that look into a graph."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.methods.weakly_supervised.diffusionclip import DiffusionClip, DiffusionClipEditor
from editkit.training.mix import Checkpoint
from tests.methods.asyrp_parts import TinyClip, tiny_backbone

T0 = 500


class TinyIdentity(torch.nn.Module):
    """Embeds an image by its coarse pixels through a frozen layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Linear(12, 6)

    def forward(self, images):
        return F.normalize(self.layer(F.adaptive_avg_pool2d(images, 2).flatten(1)), dim=1)


def tiny_method(backbone=None, clip=None, **changes) -> DiffusionClip:
    settings = {
        "prompt": "a smiling face",
        "source_prompt": "a face",
        "t0": T0,
        "n_inv": 8,
        "n_train": 6,
        "n_test": 8,
        "unseen_rounds": 2,
        "latent_steps": 3,
        "task_images": 2,
        "identity": TinyIdentity,
        "identity_weight": 0.3,
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
    }
    clip = clip or TinyClip()
    return DiffusionClip(backbone=backbone or tiny_backbone(), clip=lambda: clip, **(settings | changes))


def stirred(backbone, seed=1, amount=0.02):
    """Return a copy of the backbone with other weights, as training would leave it."""
    other = tiny_backbone()
    other.load_state_dict(backbone.state_dict())
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=noise))
    return other


def editor_of(backbone, *networks, **settings):
    checkpoints = [Checkpoint(f"network {n}", network, T0) for n, network in enumerate(networks)]
    return DiffusionClipEditor(backbone, checkpoints, **({"n_inv": 8, "n_test": 8, "measure": False} | settings))


def reconstruction(backbone, images, n=8, t0=T0):
    levels = backbone.schedule.levels(n, start=t0)
    with torch.no_grad():
        return sample(backbone, DDIM(query="source").invert(backbone, images, levels).x, levels)


def convolutions(tensor) -> int:
    """Count the convolutions that a value's gradient goes through."""
    known, stack, count = set(), [tensor.grad_fn], 0
    while stack:
        node = stack.pop()
        if node is None or node in known:
            continue
        known.add(node)
        count += "Convolution" in type(node).__name__
        stack += [parent for parent, _ in node.next_functions]
    return count


def per_call(network) -> int:
    """Count the convolutions of one call of a network."""
    return sum(isinstance(module, torch.nn.Conv2d) for module in network.modules())
