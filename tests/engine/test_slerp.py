"""Between noises on the sphere."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.slerp import slerp, slerp_all


def noises(count=2, seed=0):
    return torch.randn(count, 2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).unbind()


def test_the_ends_are_exact_and_noise_stays_as_strong():
    a, b = noises()
    assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    norms = [part.flatten(1).norm(dim=1) for part in (middle, a, b)]
    assert (norms[0] / ((norms[1] + norms[2]) / 2) > 0.95).all()
    assert (torch.lerp(a, b, 0.5).flatten(1).norm(dim=1) / norms[1] < 0.8).all(), "the mean would shrink"


def test_each_sample_has_its_own_share_and_angle():
    a, b = noises()
    both = slerp(a, b, torch.tensor([0.25, 0.75]))
    assert torch.allclose(both[:1], slerp(a[:1], b[:1], 0.25)) and torch.allclose(both[1:], slerp(a[1:], b[1:], 0.75))
    assert not torch.allclose(both[1:], slerp(a[1:], b[1:], 0.25))


@pytest.mark.parametrize("factor", [1.0, -1.0, 2.0])
def test_parallel_noises_divide_by_nothing(factor):
    a, _ = noises()
    assert torch.isfinite(slerp(a, factor * a, 0.3)).all()


def test_several_are_taken_in_by_their_weights():
    a, b, c = noises(3)
    assert torch.equal(slerp_all([a, b, c], [1.0, 0.0, 0.0]), a) and torch.equal(slerp_all([a, b, c], [0.0, 0.0, 1.0]), c)
    assert torch.equal(slerp_all([a, b], [0.3, 0.7]), slerp(a, b, 0.7))
    assert torch.equal(slerp_all([a, b, c], [0.25, 0.25, 0.5]), slerp(slerp(a, b, 0.5), c, 0.5))
