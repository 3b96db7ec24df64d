from __future__ import annotations

import math

import pytest
import torch

from editkit.metrics.bootstrap import paired_difference


def scores(count, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_a_small_constant_gain_over_scattered_images_is_found():
    hard = scores(100)
    found = paired_difference(hard + 0.02, hard)
    assert found.above and found.low == pytest.approx(0.02, abs=1e-6)
    unpaired_spread = hard.std().item() / math.sqrt(len(hard))
    assert unpaired_spread > 0.02, "only the pairing makes it visible"


def test_equal_methods_are_neither_above_nor_below():
    found = paired_difference(scores(50), scores(50))
    assert not found.above and not found.below and found.mean == 0


def test_a_loss_is_below():
    assert paired_difference(scores(50) - 0.1, scores(50)).below


def test_the_interval_is_that_of_the_mean():
    differences = torch.randn(400, generator=torch.Generator().manual_seed(1)) + 0.5
    found = paired_difference(differences, torch.zeros(400))
    half = 1.96 * differences.std().item() / 20
    assert found.low == pytest.approx(found.mean - half, abs=0.01)
    assert found.high == pytest.approx(found.mean + half, abs=0.01)


def test_the_interval_covers_nothing_in_one_of_twenty_sets():
    misses = 0
    for seed in range(200):
        noise = torch.randn(60, generator=torch.Generator().manual_seed(seed))
        found = paired_difference(noise, torch.zeros(60), resamples=500)
        misses += found.above or found.below
    assert 3 <= misses <= 22


def test_undefined_pairs_are_left_out():
    a = torch.tensor([1.0, math.nan, 3.0])
    assert paired_difference(a, torch.zeros(3)).pairs == 2
    assert math.isnan(paired_difference(a[1:2], torch.zeros(1)).mean)


def test_values_of_different_images_are_refused():
    with pytest.raises(ValueError, match="same images"):
        paired_difference(torch.zeros(3), torch.zeros(4))
