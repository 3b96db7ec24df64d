"""The stage before Diffusion Autoencoders' own: an encoder that learns to draw first, and what the autoencoder makes of it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from editkit.backbones.diffae import StartedEncoder
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.diffae import Autoencoder, EncoderStart
from editkit.training.rates import rated
from tests.tiny import SIDE, write_all

SHAPE = {"encoder_channels": [8, 16, 16], "code": 12, "blocks": 1, "attended": [], "groups": 4}
DECODER = {"sample_size": SIDE, "channels": [8, 16], "embedding": 16}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def started() -> StartedEncoder:
    torch.manual_seed(0)
    return StartedEncoder(sample_size=SIDE, **SHAPE).eval().requires_grad_(False)


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_codes_of_the_export_are_white(started, ridge):
    """Without a ridge exactly; with a large one they are centred, and directions of little variance stay small."""
    images = pictures(200)
    before = torch.cov(started(images).T)
    codes = started.whitened(images, ridge)(images)
    assert codes.mean(0).abs().max() < 1e-3
    spread = torch.cov(codes.T)
    if ridge == 0:
        assert torch.allclose(spread, torch.eye(12), atol=2e-2)
        assert (before - torch.eye(12)).abs().max() > 0.1, "they were not before"
    else:
        variances = torch.linalg.eigvalsh(before)
        expected = variances / (variances + variances.mean())
        assert torch.allclose(torch.linalg.eigvalsh(spread), expected, atol=1e-2)


def test_the_encoder_learns_pictures_and_embeddings(assets):
    torch.manual_seed(0)
    method = EncoderStart(network={"sample_size": SIDE, **SHAPE}, clip=str(assets / "clip"))
    method.prepare_training()
    method.pictures = pictures(16)
    batch = {"image": method.pictures, "key": [str(k) for k in range(16)]}
    optimizer = torch.optim.Adam(method.trainable()["encoder"], lr=3e-3)
    totals = []
    for _ in range(30):
        losses = method.loss(batch)
        assert set(losses) == {"pixels", "edges", "align"} and all(value.shape == (16,) for value in losses.values())
        total = sum(value.mean() for value in losses.values())
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None for p in method.start.parameters()), "the whole encoder learns"
        assert all(p.grad is None for p in method.clip.parameters()), "CLIP does not"
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


@pytest.mark.parametrize("mistake", [None, "not white", "not around their mean"])
def test_the_embeddings_that_codes_predict_are_white(assets, mistake):
    torch.manual_seed(0)
    method = EncoderStart(network={"sample_size": SIDE, **SHAPE}, clip=str(assets / "clip"))
    method.prepare_training()
    images = pictures(64)
    method.precompute([{"image": image} for image in images])
    raw = method.clip.image(images)
    centred = raw if mistake == "not around their mean" else raw - raw.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(raw.double().T))
    white = (axes / (variances.clamp(min=0) + 0.1 * variances.mean()).sqrt()) @ axes.T
    wanted = centred if mistake == "not white" else centred @ white.float()
    method.embedding.register_forward_hook(lambda *_: wanted)
    align = method.loss({"image": images})["align"]
    assert (align.max().item() < 1e-4) is (mistake is None)


def test_an_autoencoder_starts_with_it_and_lets_it_learn_slowly(started, tmp_path):
    started.whitened(pictures(64), 1e-2).save(tmp_path / "start")
    rates = {}

    def factory(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3)

    network = {**SHAPE, **DECODER}
    method = Autoencoder(
        network=network, encoder_from=str(tmp_path / "start"), encoder_rate=0.1, reading_rate=4.0, optimizer=factory
    )
    images = pictures(4)
    assert torch.allclose(method.denoiser.semantic_code(images), StartedEncoder.load(tmp_path / "start")(images), atol=1e-6)
    optimizer = method.optimizer(list(method.trainable()["autoencoder"]))
    for group in optimizer.param_groups:
        rates |= {id(parameter): group["lr"] for parameter in group["params"]}
    assert {rates[id(p)] for p in method.denoiser.encoder.parameters()} == {1e-4}
    named = dict(method.denoiser.unet.named_parameters())
    reading = {name for name in named if ".time_emb_proj.code." in name}
    assert reading and {rates[id(named[name])] for name in reading} == {4e-3}
    assert {rates[id(named[name])] for name in named.keys() - reading} == {1e-3}


def test_schedules_keep_the_ratio():
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    factory = rated(lambda parameters: torch.optim.SGD(parameters, lr=1.0), [(layers[1].parameters(), 0.5)])
    optimizer = factory(layers.parameters())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.2, total_iters=4)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.1])
    assert len(factory(layers[0].parameters()).param_groups) == 1, "none of those with another rate"
    assert [group["lr"] for group in factory(layers[1].parameters()).param_groups] == [0.5], "those alone"


def test_mistakes_take_a_line(started, assets, tmp_path):
    started.save(tmp_path / "start")
    other = {**SHAPE, **DECODER, "code": 10}
    with pytest.raises(UsageError, match="has code 12, the autoencoder 10: give both the same code"):
        Autoencoder(network=other, encoder_from=str(tmp_path / "start"))
    own = json.loads((assets / "diffae" / "config.json").read_text())
    kept = {name: own[name] for name in ("code", "encoder_channels")}
    with pytest.raises(UsageError, match="has an encoder already.*method.encoder_from=null"):
        Autoencoder(network=kept, init_from=str(assets / "diffae"), encoder_from=str(tmp_path / "start"))
    with pytest.raises(UsageError, match="method.align=-1 is negative"):
        EncoderStart(network={"sample_size": SIDE, **SHAPE}, align=-1)
    with pytest.raises(UsageError, match="method.encoder_rate=2"):
        Autoencoder(network={**SHAPE, **DECODER}, encoder_rate=2.0)
    with pytest.raises(UsageError, match="method.reading_rate=0.5 is out of range"):
        Autoencoder(network={**SHAPE, **DECODER}, reading_rate=0.5)
