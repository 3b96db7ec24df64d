"""The mixture of denoisers: what it predicts, whom it asks, and what an easy wrong version would do."""

from __future__ import annotations

import torch

from editkit.engine.mixture import Mixture
from editkit.types import Condition
from tests.engine.stand_ins import Calls, Wavy, random


def bent(bend):
    return Calls(Wavy(bend=bend).requires_grad_(False))


def fixed(*rows):
    return lambda t: torch.tensor(rows, dtype=torch.float64)


def test_it_is_the_weighted_mean_of_each_image(x0):
    a, b, c = bent(0.1), bent(0.4), bent(0.9)
    rows = [[0.2, 0.3, 0.5], [2.0, -1.0, 0.0], [0.0, 0.5, 0.5]]
    got = Mixture(a, [b, c], fixed(*rows))(x0, 400.0)
    parts = [one(x0, 400.0) for one in (a, b, c)]
    for name in ("x0", "eps"):
        expected = sum(torch.tensor(rows).double()[:, n, None, None, None] * getattr(part, name) for n, part in enumerate(parts))
        torch.testing.assert_close(getattr(got, name), expected, rtol=1e-6, atol=1e-6)


def test_one_share_gives_that_denoiser_s_bits_and_asks_no_other(x0):
    a, b = bent(0.1), bent(0.4)
    got = Mixture(a, [b], fixed(*[[0.0, 1.0]] * 3))(x0, 400.0)
    assert a.batches == [] and b.batches == [3]
    assert torch.equal(got.eps, b(x0, 400.0).eps) and torch.equal(got.x0, b(x0, 400.0).x0)


def test_each_is_asked_once_for_the_images_that_it_has_a_share_in(x0):
    a, b = bent(0.1), bent(0.4)
    Mixture(a, [b], fixed([1.0, 0.0], [0.5, 0.5], [1.0, 0.0]))(x0, 400.0)
    assert (a.batches, b.batches) == ([3], [1])


def test_images_keep_their_own_conditions(x0):
    """An easy wrong version hands the whole batch's condition on: rows of another image, or another batch size."""
    a, b, cond = bent(0.1), bent(0.4), Condition(vector=random((3, 48), 4))
    got = Mixture(a, [b], fixed([1.0, 0.0], [0.0, 1.0], [0.0, 1.0]))(x0, 400.0, cond)
    for row, one in enumerate((a, b, b)):
        alone = one(x0[row : row + 1], 400.0, Condition(vector=cond.vector[row : row + 1]))
        torch.testing.assert_close(got.eps[row : row + 1], alone.eps)


def test_calls_are_counted_by_image_and_time(gaussian):
    levels = gaussian.schedule.levels(6)
    late = sum(t < 500 for t in levels.times[1:])
    mixture = Mixture(gaussian, [gaussian], lambda t: torch.tensor([[1.0, 0.0], [0.5, 0.5]] if t < 500 else [[0.5, 0.5]] * 2))
    assert mixture.calls(levels) == [12.0 - late, 12.0] and 0 < late < 6


def test_it_is_a_denoiser(gaussian):
    mixture = Mixture(gaussian, [Wavy()], fixed([1.0, 0.0]))
    assert mixture.schedule is gaussian.schedule and mixture.parameterization == gaussian.parameterization
