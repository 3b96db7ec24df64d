"""LPIPS on random weights against its definition, written out for one pair of images."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.lpips import LpipsAlex, load_lpips


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    alexnet = LpipsAlex().state_dict() | {"classifier.1.weight": torch.zeros(1)}
    linear = {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate((64, 192, 384, 256, 256))}
    return LpipsAlex.from_published(alexnet, linear)


def pictures(seed):
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_is_the_definition(net):
    a, b = pictures(0), pictures(1)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((v[:1] - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for v in (a, b))
    total, stage = 0.0, 0
    for layer in net.features:
        x, y = layer(x), layer(y)
        if isinstance(layer, torch.nn.ReLU):
            difference = x / x.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)
            total += float((difference**2 * net.weights[stage]).sum(1).mean())
            stage += 1
    assert stage == 5
    assert float(net.distance(a, b)[0]) == pytest.approx(total, rel=1e-4)


def test_equal_images_are_at_no_distance(net):
    assert torch.equal(net.distance(pictures(0), pictures(0)), torch.zeros(2))


def test_round_trip(net, tmp_path):
    again = load_lpips(net.save(tmp_path))
    assert torch.allclose(again.distance(pictures(0), pictures(1)), net.distance(pictures(0), pictures(1)), rtol=1e-2)
