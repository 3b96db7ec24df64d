"""Inference settings: each within its tolerance of plain float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from editkit.backbones.pixel import PixelBackbone
from editkit.engine.precision import Precision, exact
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from tests.engine.stand_ins import assert_near, tiny_unet


def run(images, precision):
    backbone = precision.prepare(PixelBackbone(tiny_unet(), Schedule.linear(), "v"))
    with torch.no_grad(), precision.running(images.device):
        return sample(backbone, images, backbone.schedule.levels(5))


def test_plain_settings_change_no_bit(images):
    backbone = PixelBackbone(tiny_unet(), Schedule.linear(), "v")
    with torch.no_grad():
        assert torch.equal(run(images, Precision()), sample(backbone, images, backbone.schedule.levels(5)))


def test_channels_last_is_within_rounding(images):
    assert_near(run(images, Precision(channels_last=True)), run(images, Precision()), 1e-5)


def test_bf16_keeps_the_state_in_float32(images):
    out = run(images, Precision("bf16"))
    assert out.dtype == torch.float32
    plain = run(images, Precision())
    assert not torch.equal(out, plain)
    assert_near(out, plain, 0.03)


def test_a_network_without_its_own_way_is_prepared_here():
    network = nn.Conv2d(3, 4, 3)
    assert Precision(channels_last=True).prepare(network) is network
    assert network.weight.is_contiguous(memory_format=torch.channels_last)


def test_compilation_is_asked_of_the_network(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    network = nn.Conv2d(3, 4, 3)
    Precision(compile=True).prepare(network)
    assert compiled == [network]
    Precision(compile=True).prepare(PixelBackbone(tiny_unet(), Schedule.linear(), "v"))
    assert len(compiled) > 1


def test_unknown_precisions_are_refused():
    with pytest.raises(UsageError, match="fp32, bf16"):
        Precision("fp16")


def test_exact_mode_is_undone():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="inside"), exact():
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.allow_tf32
        raise RuntimeError("inside")
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before
