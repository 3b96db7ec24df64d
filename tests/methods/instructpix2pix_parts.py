"""A tiny InstructPix2Pix, pairs to train it on and requests to edit."""

from __future__ import annotations

import functools

import torch

from editkit.methods.fully_supervised.instructpix2pix import InstructPix2Pix
from editkit.types import EditRequest
from tests.backbones import tiny_latent as tiny

TEXTS = ["make it a smiling face", "make it old"]


def method(backbone=None, **settings) -> InstructPix2Pix:
    sampling = {"steps": 10, "solver": "ddim", "optimizer": functools.partial(torch.optim.AdamW, lr=3e-3)}
    made = InstructPix2Pix(backbone=backbone or tiny.backbone(), **sampling | settings)
    made.prepare_training()
    made.freeze_rest()
    made.train()
    return made


def requests(**changes) -> list[EditRequest]:
    given = zip(tiny.images(2), TEXTS, strict=True)
    return [EditRequest(f"{n}.png", image=image, instruction=text, **changes) for n, (image, text) in enumerate(given)]


def batch(**changes):
    pair = {"image": tiny.images(2), "target": tiny.images(2).flip(3), "instruction": list(TEXTS), "key": ["a", "b"]}
    return pair | changes


def perturb(made: InstructPix2Pix) -> None:
    """Let the network hear its new channels."""
    torch.manual_seed(11)
    with torch.no_grad():
        made.backbone.unet.conv_in.weight[:, 4:].normal_(std=0.3)
