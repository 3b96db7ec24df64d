"""The feature networks: sizes, ranges, round trips."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.features import PerceptualNet, load_perceptual
from editkit.backbones.identity import IdentityNet, load_identity
from editkit.errors import UserError


def images(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("net", [PerceptualNet(), IdentityNet()], ids=["perceptual", "identity"])
def test_is_small(net):
    assert sum(p.numel() for p in net.parameters()) < 600_000


def test_perceptual_features_halve():
    features = PerceptualNet()(images())
    assert [tuple(f.shape[1:]) for f in features] == [(32, 64, 64), (64, 32, 32), (96, 16, 16)]


def test_distance_is_a_distance_per_image():
    torch.manual_seed(0)
    net, a, b = PerceptualNet(), images(3), images(3, seed=1)
    assert torch.equal(net.distance(a, a), torch.zeros(3))
    assert torch.allclose(net.distance(a, b), net.distance(b, a))
    assert torch.allclose(net.distance(a, b)[1:2], net.distance(a[1:2], b[1:2]), atol=1e-6)
    assert ((net.distance(a, b) > 0) & (net.distance(a, b) <= 2)).all()


def test_distance_gradient_is_finite_at_zero_features():
    net = PerceptualNet()
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    x = images(1).requires_grad_()
    net.distance(x, images(1, seed=1)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_identity_is_unit_and_takes_other_sizes():
    net = IdentityNet()
    for size in (32, 64, 100):
        embedding = net(images(size=size))
        assert embedding.shape == (2, 128)
        assert torch.allclose(embedding.norm(dim=1), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize(
    ("net", "load"), [(PerceptualNet((8, 16)), load_perceptual), (IdentityNet((8, 16), dim=8), load_identity)]
)
def test_round_trip_in_half_precision(tmp_path, net, load):
    again = load(net.save(tmp_path / "net"))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in again.parameters())
    assert not again.training
    for before, after in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(before.half().float(), after)


def test_wrong_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="kind=identity"):
        load_identity(PerceptualNet((8,)).save(tmp_path / "net"))
