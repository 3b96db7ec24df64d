"""Tiny parts for the tests of EffDiff."""

from __future__ import annotations

from functools import partial

import torch

from editkit.methods.weakly_supervised.effdiff import EffDiff
from tests.methods.asyrp_parts import TinyClip, tiny_backbone

T0 = 350


def tiny_method(backbone=None, clip=None, **changes) -> EffDiff:
    settings = {
        "prompt": "a smiling face",
        "source_prompt": "a face",
        "t0": T0,
        "n_inv": 8,
        "optimizer": partial(torch.optim.Adam, lr=1e-3),
    }
    clip = clip or TinyClip()
    return EffDiff(backbone=backbone or tiny_backbone(), clip=lambda: clip, **(settings | changes))


def first_update(method, data, rows=(0, 1)):
    return next(iter(method.updates(data.batch(list(rows)))))
