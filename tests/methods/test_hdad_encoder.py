"""The stage before HDAE's own: codes of levels that learn to draw first, and what the autoencoder makes of them."""

from __future__ import annotations

import json

import pytest
import torch

from editkit.backbones.hdae import StartedLevels
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.hdad import Autoencoder, EncoderStart
from editkit.training.encoder_start import LevelDrawing
from tests.tiny import SIDE, write_all

SHAPE = {"encoder_channels": [8, 16, 16], "code": 6, "blocks": 1, "attended": [], "groups": 4}
DECODER = {"sample_size": SIDE, "channels": [8, 16], "embedding": 16}
LEVELS = {"sample_size": SIDE, "levels": 2, **SHAPE}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["U", "E"])
def started(request) -> StartedLevels:
    torch.manual_seed(0)
    return StartedLevels(variant=request.param, **LEVELS).eval().requires_grad_(False)


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_each_level_is_white_and_stays_a_map_of_its_own_features(started):
    images = pictures(200)
    before = started(images)
    codes = started.whitened(images, 0.0)(images)
    assert codes.shape == (200, 12) and codes.mean(0).abs().max() < 1e-3
    for level in range(2):
        own = slice(6 * level, 6 * level + 6)
        assert torch.allclose(torch.cov(codes[:, own].T), torch.eye(6), atol=2e-2)
        assert (torch.cov(before[:, own].T) - torch.eye(6)).abs().max() > 0.1, "they were not before"
        known = torch.cat([before[:, own], torch.ones(200, 1)], 1)
        rest = codes[:, own] - known @ torch.linalg.lstsq(known, codes[:, own]).solution
        assert rest.abs().max() < 1e-2, "nothing of another level is mixed in"


def test_a_code_is_drawn_from_at_its_own_side_alone():
    torch.manual_seed(0)
    net = LevelDrawing(16, 6, 3)
    maps: dict[int, torch.Tensor] = {}
    for n, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda module, given, made, n=n: maps.__setitem__(n, made))
    codes = torch.randn(1, 18)
    assert net(codes).shape == (1, 3, 16, 16)
    first = dict(maps)
    for level, kept in ((1, []), (2, [0])):
        other = codes.clone()
        other[:, 6 * level : 6 * level + 6] += 1
        net(other)
        assert [n for n in maps if torch.equal(maps[n], first[n])] == kept
    assert [tuple(first[n].shape[2:]) for n in (0, 1)] == [(8, 8), (16, 16)]


def test_every_head_learns(assets):
    torch.manual_seed(0)
    method = EncoderStart(network=LEVELS, clip=str(assets / "clip"))
    method.prepare_training()
    losses = method.loss({"image": pictures(8), "key": [str(k) for k in range(8)]})
    sum(value.mean() for value in losses.values()).backward()
    for last in method.start.heads():
        assert last.weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in method.start.parameters()), "and all below them"


def test_an_autoencoder_starts_with_its_codes(started, tmp_path):
    started.whitened(pictures(64), 1e-2).save(tmp_path / "start")
    variant = started.config["variant"]
    method = Autoencoder(network={**SHAPE, **DECODER}, variant=variant, encoder_from=str(tmp_path / "start"), encoder_rate=0.1)
    images = pictures(4)
    expected = StartedLevels.load(tmp_path / "start")(images)
    assert torch.allclose(method.denoiser.semantic_code(images), expected, atol=1e-6)
    assert [slice_.stop - slice_.start for slice_ in method.denoiser.parts.values()] == [6, 6]


def test_the_joint_stage_goes_on_with_all_of_it(started, assets, tmp_path):
    variant, images = started.config["variant"], pictures(4)
    start, first = started.save(tmp_path / "start"), tmp_path / "first"
    (start / "card.json").write_text('{"training_seconds": 3}')
    begun = Autoencoder(network={**SHAPE, **DECODER}, variant=variant, encoder_from=str(start))
    begun.denoiser.save(first)
    (first / "card.json").write_text(json.dumps({"training_seconds": 10, "earlier_seconds": begun.card()["earlier_seconds"]}))
    method = Autoencoder(init_from=str(first), variant=variant)
    fresh = Autoencoder(init_from=str(assets / "ddpm"), network=SHAPE)
    assert (method.card()["earlier_seconds"], fresh.card()["earlier_seconds"]) == (13, 0), "a pixel model is no stage"
    assert torch.equal(method.denoiser.semantic_code(images), begun.denoiser.semantic_code(images))


def test_mistakes_take_a_line(started, assets, tmp_path):
    started.save(tmp_path / "start")
    network, variant = {**SHAPE, **DECODER}, started.config["variant"]
    given = {"variant": variant, "encoder_from": str(tmp_path / "start")}
    with pytest.raises(UsageError, match="has levels 2, the autoencoder 3: give both the same levels"):
        Autoencoder(network={**network, "channels": [8, 16, 16]}, **given)
    other = "E" if variant == "U" else "U"
    with pytest.raises(UsageError, match=f"has variant {variant}, the autoencoder {other}: give both"):
        Autoencoder(network=network, **{**given, "variant": other})
    with pytest.raises(UsageError, match="has no encoder to go on with; for a new one give method.network.code and"):
        Autoencoder(init_from=str(assets / "ddpm"))
    with pytest.raises(UsageError, match="has an encoder already.*method.encoder_from=null"):
        Autoencoder(warm_from=str(assets / "diffae"), **given)
    with pytest.raises(UserError, match="does not hold a level-encoder network"):
        Autoencoder(network=network, variant=variant, encoder_from=str(assets / "diffae"))
