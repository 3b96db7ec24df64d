"""CycleDiffusion: noise maps along the posterior path."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.invert import CycleDiffusion, EditFriendly, replay
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.types import Condition
from tests.engine.stand_ins import SHAPE, random


@pytest.mark.parametrize("grid", [{}, {"spacing": "leading", "offset": 1}, {"spacing": "leading", "clean": "ab0"}], ids=str)
def test_it_reconstructs_exactly(grid, wavy, x0, noise):
    levels = wavy.schedule.levels(10, **grid)
    for inverter in (CycleDiffusion(), CycleDiffusion(eta=1.0), CycleDiffusion(time_batch=4), CycleDiffusion(skip=4)):
        trajectory = inverter.invert(wavy, x0, levels, noise=noise(x0))
        torch.testing.assert_close(sample(wavy, stop=levels.entry, **replay(trajectory)), x0, rtol=1e-8, atol=1e-8)


def test_the_maps_and_the_start_decide_the_edit(gaussian, x0, noise):
    """Two seeds: other maps, the same reconstruction; another condition: an edit, without any more noise drawn."""
    levels = gaussian.schedule.levels(10)
    one, other = (CycleDiffusion().invert(gaussian, x0, levels, noise=noise(x0, seed)) for seed in (0, 1))
    assert not torch.allclose(one.noises[5], other.noises[5]) and not torch.allclose(one.x, other.x)
    edit = Condition(vector=random((3, 48), 4))
    before = torch.get_rng_state()
    assert torch.equal(sample(gaussian, cond=edit, **replay(one)), sample(gaussian, cond=edit, **replay(one)))
    assert torch.equal(torch.get_rng_state(), before)


def remaining(trajectory, x0, i):
    """Return the noise in the state of level i."""
    return (trajectory.states[i] - trajectory.levels.signal(i) * x0) / trajectory.levels.noise(i)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_states_are_noised_images_whose_neighbours_share_their_noise(eta, gaussian, noise):
    """Easy wrong version: independent noises at each level, which is edit-friendly inversion."""
    x0 = gaussian.flow(random((200, *SHAPE), 9), float(gaussian.schedule.table[-1]), 1.0)
    levels = gaussian.schedule.levels(20)

    def likeness(inverter):
        trajectory = inverter.invert(gaussian, x0, levels, noise=noise(x0))
        for i in (3, 10, 19):
            assert abs(float(remaining(trajectory, x0, i).std()) - 1) < 0.03
        return float((remaining(trajectory, x0, 10) * remaining(trajectory, x0, 9)).mean())

    uncorrected = {"pivots": True, "time_batch": 100}
    assert likeness(CycleDiffusion(eta=eta, **uncorrected)) > 0.6 and abs(likeness(EditFriendly(**uncorrected))) < 0.05


def test_its_maps_are_nearer_to_standard_noise_than_edit_friendly_ones(gaussian, noise):
    x0 = gaussian.flow(random((40, *SHAPE), 9), float(gaussian.schedule.table[-1]), 1.0)
    levels = gaussian.schedule.levels(20)

    def spread(inverter):
        maps = inverter.invert(gaussian, x0, levels, noise=noise(x0)).noises
        return sum(float(maps[i].std()) for i in range(5, 18)) / 13

    own, independent = spread(CycleDiffusion(eta=1.0)), spread(EditFriendly())
    assert abs(own - 1) < 0.15 and independent > own + 0.2


def test_skipping_every_level_returns_the_image(wavy, x0):
    trajectory = CycleDiffusion(skip=50).invert(wavy, x0, wavy.schedule.levels(8))
    assert trajectory.calls == 0 and torch.equal(sample(wavy, stop=1, **replay(trajectory)), x0)


def test_wrong_settings_and_missing_noise(wavy, x0):
    with pytest.raises(UsageError, match="eta > 0"):
        CycleDiffusion(eta=0.0)
    with pytest.raises(ValueError, match="noise="):
        CycleDiffusion().invert(wavy, x0, wavy.schedule.levels(4))
