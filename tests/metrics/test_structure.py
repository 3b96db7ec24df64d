from __future__ import annotations

import pytest
import torch

from editkit.metrics.structure import structure_distance


def test_structure_does_not_depend_on_what_the_keys_are_but_on_how_alike_they_are():
    torch.manual_seed(0)
    keys = torch.randn(2, 9, 6)
    turned = 3 * keys @ torch.linalg.qr(torch.randn(6, 6)).Q
    assert structure_distance(keys, turned).max() < 1e-5
    assert (structure_distance(keys, keys.roll(1, 1)) > 0.1).all()
    assert structure_distance(keys, keys.flip(0)).tolist() == pytest.approx(
        [structure_distance(keys, keys.flip(0))[0].item()] * 2
    )


def test_the_largest_distance_is_two_and_does_not_grow_with_the_picture():
    for count in (4, 64):
        signs = torch.ones(1, count, 1)
        signs[:, ::2] = -1
        found = structure_distance(torch.ones(1, count, 1), signs).item()
        assert found == pytest.approx(2 * 0.5**0.5, abs=1e-6), "half of the pairs go from 1 to -1"


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="same patches"):
        structure_distance(torch.zeros(1, 4, 2), torch.zeros(1, 9, 2))
