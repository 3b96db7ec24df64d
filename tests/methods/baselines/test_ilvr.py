"""ILVR: what is drawn has the image's low frequencies and the model's high ones."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.pixel import load_pixel
from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import sample
from editkit.engine.steps import ddpm
from editkit.errors import UsageError
from editkit.methods.baselines.ilvr import ILVR
from editkit.networks.low_pass import low_pass
from editkit.types import EditRequest
from tests.tiny import SIDE, write_pixel

STEPS = 8


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_pixel(write_pixel(tmp_path_factory.mktemp("ilvr") / "ddpm"))


def requests(count=2):
    generator = torch.Generator().manual_seed(1)
    return [EditRequest(f"{k}.png", torch.rand(3, SIDE, SIDE, generator=generator) * 2 - 1) for k in range(count)]


def drawn(backbone, asked=None, **settings):
    return ILVR(backbone=backbone, **{"steps": STEPS, "factor": 4} | settings).editor([]).edit(asked or requests())


def test_low_frequencies_are_those_of_the_image(backbone):
    images = torch.stack([one.image for one in requests()])
    kept = (low_pass(drawn(backbone).images, 4) - low_pass(images, 4)).abs().mean()
    free = (low_pass(drawn(backbone, until=1.0).images, 4) - low_pass(images, 4)).abs().mean()
    assert kept < 0.05 < free
    finer = (low_pass(drawn(backbone, factor=2).images, 2) - low_pass(images, 2)).abs().mean()
    assert finer < 0.05


def test_left_alone_it_is_ancestral_sampling(backbone):
    keys = {"keys": ["0.png", "1.png"], "seed": [0, 0], "sample": [0, 0]}
    x = batch_noise((3, SIDE, SIDE), purpose="ilvr/start", **keys)
    noise = level_noise((3, SIDE, SIDE), purpose="ilvr/step", **keys)
    with torch.no_grad():
        plain = sample(backbone, x, backbone.levels(STEPS), step=ddpm, noise=noise).clamp(-1, 1)
    assert torch.equal(drawn(backbone, until=1.0, clip=False).images, plain)


def test_a_result_does_not_depend_on_its_batch_and_costs_a_call_a_step(backbone):
    asked = requests()
    together = drawn(backbone, asked)
    assert together.scores["network_calls"] == [STEPS, STEPS]
    alone = torch.cat([drawn(backbone, [one]).images for one in asked])
    assert torch.allclose(together.images, alone, atol=1e-4)
    fewer = drawn(backbone, [asked[0].with_(steps=4), asked[1]])
    assert fewer.scores["network_calls"] == [4, STEPS] and torch.allclose(fewer.images[1:], alone[1:], atol=1e-4)


def test_a_share_out_of_range_is_named(backbone):
    with pytest.raises(UsageError, match=r"method\.until=1\.5"):
        drawn(backbone, until=1.5)
