"""Gradients through a network whose layers are compiled: those of the plain network, wherever a method asks for them."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch._dynamo.utils import counters

from editkit.backbones.pixel import PixelBackbone
from editkit.engine.schedule import Schedule

ADM = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet", "out_channels": 6}


@pytest.fixture(params=[{}, ADM], ids=["ddpm", "adm"])
def pair(request):
    """Return the same network twice, plain and compiled; a layer that falls back to running plainly is an error.

    Three levels: that is where the gradients of a whole compiled UNet go wrong, so a switch to that would be seen.
    """

    def network() -> PixelBackbone:
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        }
        small = {"sample_size": 16, "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
        return PixelBackbone(UNet2DModel(**small, attention_head_dim=8, **blocks, **request.param), Schedule.linear())

    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield network(), network().accelerate(compile=True)
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 0
    torch._dynamo.reset()


def noisy() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def guided(backbone: PixelBackbone) -> list[Tensor]:
    """Return the gradients at x (guidance) and at a shift of h (training of a shift) of a frozen network."""
    x = noisy().requires_grad_()
    h, finish = backbone.halves(x, 300)
    shift = torch.zeros_like(h, requires_grad=True)
    shifted, plain = finish([h + shift, h])
    (shifted.x0 - noisy()).square().mean().add(plain.eps.square().mean()).backward()
    assert x.grad is not None and shift.grad is not None
    return [x.grad, shift.grad]


def trained(backbone: PixelBackbone) -> list[Tensor]:
    """Return the gradients at all weights (fine-tuning)."""
    backbone.requires_grad_(True).train()
    pred = backbone(noisy(), 300)
    loss = (pred.eps - 1).square().mean()
    loss = loss + pred.features["variance"].square().mean() if pred.features else loss
    loss.backward()
    assert all(p.grad is not None for p in backbone.parameters())
    return [p.grad for p in backbone.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler")
@pytest.mark.parametrize("gradients", [guided, trained])
def test_gradients_are_those_of_the_plain_network(pair, gradients):
    plain, compiled = pair
    expected, found = gradients(plain), gradients(compiled)
    whole = torch.stack([one.norm() for one in expected]).norm()
    for one, other in zip(expected, found, strict=True):
        assert one.norm() > 0
        assert (one - other).norm() <= 1e-3 * one.norm() + 1e-6 * whole  # the latter for the keys' biases, whose are rounding
