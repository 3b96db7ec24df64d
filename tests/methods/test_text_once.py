"""Whatever samples with a latent model projects its texts to keys and values once, not at every step."""

from __future__ import annotations

import pytest
import torch

from editkit.app.sample import draw
from editkit.engine.invert import INVERTERS
from editkit.methods.baselines.inpaint import Inpaint
from editkit.methods.baselines.reconstruction import Reconstruction
from editkit.methods.baselines.sdedit import NoisedStart
from editkit.types import EditRequest
from tests.backbones import tiny_latent as tiny

STEPS = 6


def run(made, **wanted):
    editor = made.editor([])
    asked = [EditRequest("a.png", tiny.images()[0], prompt="a red cup", source_prompt="a cup", **wanted)]
    return editor.edit(asked, editor.prepare(asked)).images


def inpaint(backbone):
    return run(Inpaint(backbone=backbone, steps=STEPS), mask=tiny.masks()[0])


def sdedit(backbone):
    return run(NoisedStart(backbone=backbone, steps=STEPS, noising=1.0))


def reconstruction(backbone):
    return run(Reconstruction(backbone=backbone, inverter=INVERTERS["ddim"](), steps=STEPS))


def drawing(backbone):
    return next(draw(backbone, 2, EditRequest("", prompt="a red cup"), STEPS, "ddim", 2))


@pytest.mark.parametrize(("work", "channels", "most"), [(inpaint, 9, 1), (sdedit, 4, 1), (reconstruction, 4, 2), (drawing, 4, 1)])
def test_a_text_is_projected_once_in_a_run(work, channels, most):
    """The way up and the way down of a reconstruction are two runs."""
    backbone, calls = tiny.backbone(channels), []
    layer = next(module for name, module in backbone.unet.named_modules() if name.endswith("attn2.to_k"))
    own = layer.forward
    layer.forward = lambda tokens: calls.append(len(tokens)) or own(tokens)
    with torch.no_grad():
        work(backbone)
    assert 1 <= len(calls) <= most < STEPS
