"""Delta blocks: sizes of the published ones, and what makes them pointwise."""

from __future__ import annotations

import pytest
import torch

from editkit.networks.delta import DELTAS, AdmDelta, DdpmDelta


def test_parameters_are_those_of_the_published_blocks():
    assert sum(p.numel() for p in DdpmDelta(512, 512).parameters()) == 788_992
    assert sum(p.numel() for p in AdmDelta(512, 512).parameters()) == 790_016


@pytest.mark.parametrize("block", DELTAS.values())
def test_positions_are_treated_alike(block):
    torch.manual_seed(0)
    f, h, temb = block(16, 24), torch.randn(2, 16, 4, 4), torch.randn(1, 24)
    order = torch.randperm(16)
    shuffled = h.flatten(2)[:, :, order].view_as(h)
    expected = f(h, temb).flatten(2)[:, :, order].view_as(h)
    assert torch.allclose(f(shuffled, temb), expected, atol=1e-5)


@pytest.mark.parametrize("block", DELTAS.values())
def test_starts_with_a_shift_unless_asked_otherwise(block):
    h, temb = torch.randn(1, 16, 4, 4), torch.randn(1, 24)
    assert block(16, 24)(h, temb).abs().max() > 0
    assert torch.equal(block(16, 24, zero_init=True)(h, temb), torch.zeros_like(h))


@pytest.mark.parametrize("block", DELTAS.values())
def test_the_time_matters_unless_left_out(block):
    h = torch.randn(1, 16, 4, 4)
    early, late = torch.randn(1, 24), torch.randn(1, 24)
    timed, untimed = block(16, 24), block(16, 0)
    assert not torch.equal(timed(h, early), timed(h, late))
    assert torch.equal(untimed(h, early), untimed(h, late))


def test_no_residual_path():
    """An easy wrong version returns h + f(h): the shift of a zero-initialised block would be h itself."""
    f, h = DdpmDelta(16, 24, zero_init=True), torch.randn(1, 16, 4, 4)
    assert f(h, torch.randn(1, 24)).abs().max() < h.abs().max() * 1e-6


@pytest.mark.parametrize("block", DELTAS.values())
def test_trains_on_a_channels_last_bottleneck_of_a_frozen_network(block):
    f, h = block(16, 24), torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last)
    f(h, torch.randn(1, 24)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in f.parameters())
