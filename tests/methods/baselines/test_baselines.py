from __future__ import annotations

from functools import partial

import pytest
import torch

from editkit.backbones.clip import load_clip
from editkit.backbones.pixel import load_pixel
from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.ode import FixedPoint
from editkit.losses.clip_direction import DirectionalClip
from editkit.methods.baselines.clip_guided import ClipGuided
from editkit.methods.baselines.reconstruction import Reconstruction
from editkit.methods.baselines.sdedit import NoisedStart
from editkit.types import EditRequest
from tests.tiny import SIDE, write_clip, write_pixel

STEPS = 8


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    write_pixel(folder / "ddpm")
    write_clip(folder / "clip")
    return folder


@pytest.fixture
def backbone(assets):
    return load_pixel(assets / "ddpm")


@pytest.fixture
def clip(assets):
    return partial(load_clip, assets / "clip")


def request(key, **changes):
    picture = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(len(key))) * 2 - 1
    return EditRequest(key, picture, **{"prompt": "a smiling face", "source_prompt": "a face"} | changes)


def edited(editor, requests):
    return editor.edit(requests, editor.prepare(requests))


def guided(backbone, clip, **settings):
    return ClipGuided(backbone=backbone, clip=clip, **{"steps": STEPS} | settings).editor([])


def test_reconstruction_is_close_and_closer_with_refinement(backbone):
    requests = [request("a"), request("bb")]
    images = torch.stack([one.image for one in requests])
    plain = edited(Reconstruction(backbone=backbone, steps=STEPS).editor([]), requests).images
    refined = edited(
        Reconstruction(backbone=backbone, inverter=FixedPoint(refinements=5), steps=STEPS).editor([]), requests
    ).images
    assert (refined - images).square().mean() < 0.1 * (plain - images).square().mean()


def test_the_calls_are_those_that_were_made(backbone, clip):
    for editor in (
        Reconstruction(backbone=backbone, steps=STEPS).editor([]),
        guided(backbone, clip),
        NoisedStart(backbone=backbone, steps=STEPS).editor([]),
    ):
        requests = [request("a"), request("bb")]
        with count_calls(backbone, flops=False) as counter:
            result = edited(editor, requests)
        assert result.scores["network_calls"] == [counter.calls] * 2, editor.name


def test_an_inversion_is_shared_through_the_cache(backbone, clip, tmp_path):
    requests = [request("a"), request("bb")]
    first, second = Reconstruction(backbone=backbone, steps=STEPS).editor([]), guided(backbone, clip, scale=0.0)
    alone = edited(first, requests).images
    first.cache = second.cache = InversionCache(tmp_path)
    edited(first, requests)
    with count_calls(backbone, flops=False) as counter:
        result = edited(second, requests)
    assert counter.calls == STEPS and result.scores["network_calls"] == [2 * STEPS - 1] * 2, "saved calls still count"
    assert torch.allclose(result.images, alone, atol=1e-5)


def test_without_a_scale_guidance_reconstructs_and_with_one_it_goes_the_way_of_the_captions(backbone, clip):
    requests = [request("a"), request("bb")]
    plain = edited(Reconstruction(backbone=backbone, steps=STEPS).editor([]), requests).images
    still = edited(guided(backbone, clip, scale=0.0), requests).images
    assert torch.allclose(still, plain, atol=1e-5)
    loss = DirectionalClip(clip(), "a face", "a smiling face")
    sources = loss.features(torch.stack([one.image for one in requests]))
    moved = edited(guided(backbone, clip, scale=20.0), requests).images
    assert (loss(moved, sources) < loss(plain, sources)).all()
    back = edited(guided(backbone, clip, scale=20.0), [one.with_(strength=-1.0) for one in requests]).images
    assert (loss(back, sources) > loss(moved, sources)).all()


def test_every_request_is_guided_by_its_own_captions(backbone, clip):
    requests = [request("a"), request("bb", prompt="an old face"), request("ccc")]
    editor = guided(backbone, clip, scale=20.0)
    together = edited(editor, requests).images
    alone = torch.cat([edited(editor, [one]).images for one in requests])
    assert (together - alone).abs().max() < 2 / 255
    same = edited(editor, [one.with_(prompt="a smiling face") for one in requests]).images
    assert (together - same).abs()[1].max() > (together - same).abs()[[0, 2]].max()


def test_guidance_stays_within_its_interval(backbone, clip):
    requests = [request("a")]
    never = edited(guided(backbone, clip, scale=20.0, interval=(2000.0, 3000.0)), requests).images
    assert torch.equal(never, edited(guided(backbone, clip, scale=0.0), requests).images)


def test_the_noise_of_sdedit_belongs_to_the_image(backbone):
    editor = NoisedStart(backbone=backbone, steps=STEPS).editor([])
    requests = [request("a"), request("bb")]
    together, alone = edited(editor, requests).images, edited(editor, requests[1:]).images
    assert (together[1:] - alone).abs().max() < 2 / 255
    assert not torch.allclose(alone, edited(editor, [requests[1].with_(seed=1)]).images, atol=0.05)
    untouched = NoisedStart(backbone=backbone, steps=STEPS, noising=0.0).editor([])
    assert torch.equal(edited(untouched, requests).images, torch.stack([one.image for one in requests]))
