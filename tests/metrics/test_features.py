from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from editkit.metrics.clip import direction, directions
from editkit.metrics.frechet import frechet
from editkit.metrics.identity import similarity
from editkit.metrics.images import mean


def unit(*rows):
    return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_direction_is_one_along_the_texts_and_minus_one_against_them():
    source, edited = unit([1, 0, 0], [0, 1, 0]), unit([0, 1, 0], [1, 0, 0])
    found = direction(source, edited, unit([1, 0, 0]), unit([0, 1, 0]))
    assert found.tolist() == pytest.approx([1.0, -1.0])


def test_direction_of_equal_pictures_is_undefined_left_out_and_counted():
    source, edited = unit([1, 0, 0], [1, 0, 0]), unit([1, 1e-6, 0], [0, 1, 0])
    found = mean(direction(source, edited, unit([1, 0, 0]), unit([0, 1, 0])))
    assert (found.value, found.count, found.excluded) == (pytest.approx(1.0), 1, 1)


def test_equal_captions_have_no_direction():
    with pytest.raises(ValueError, match="mean the same"):
        direction(unit([1, 0]), unit([0, 1]), unit([1, 0]), unit([1, 0]))


def test_captions_of_each_picture_are_taken_with_their_own_and_equal_ones_are_undefined():
    source, edited = unit([1, 0, 0], [1, 0, 0], [1, 0, 0]), unit([0, 1, 0], [0, 1, 0], [0, 1, 0])
    found = directions(source, edited, unit([1, 0, 0], [0, 1, 0], [1, 0, 0]), unit([0, 1, 0], [1, 0, 0], [1, 0, 0]))
    assert found[:2].tolist() == pytest.approx([1, -1]) and found[2].isnan()


def test_identity_of_equal_pictures_is_one():
    images = torch.randn(2, 3, 4, 4)
    assert similarity(lambda x: x.flatten(1), images, images).tolist() == pytest.approx([1, 1])
    assert similarity(lambda x: x.flatten(1), images, -images).tolist() == pytest.approx([-1, -1])


def test_frechet_of_a_set_with_itself_is_nothing_even_when_features_are_many():
    features = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    assert frechet(features, features) < 1e-3


def test_frechet_of_gaussians_is_the_known_one():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 3, generator=generator)
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 0.0, 0.0])
    b = torch.randn(20_000, 3, generator=generator) * scale + shift
    assert frechet(a, b) == pytest.approx(9 + (1 - 2) ** 2 + (1 - 0.5) ** 2, rel=0.03)


def test_frechet_sees_correlations_that_variances_hide():
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], 20_000))
    b = torch.from_numpy(rng.multivariate_normal([0, 0], [[1, -0.9], [-0.9, 1]], 20_000))
    expected = 2 * (2 - 2 * np.sqrt(0.19))  # the eigenvalues 1.9 and 0.1 change places
    assert frechet(a, b) == pytest.approx(expected, rel=0.05)


def test_one_picture_has_no_frechet_distance():
    with pytest.raises(ValueError, match="two images"):
        frechet(torch.zeros(1, 4), torch.zeros(5, 4))
