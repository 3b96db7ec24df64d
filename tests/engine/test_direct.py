"""Direct inversion: sources that stay on their pivots, edits beside them that do not notice."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.direct import Beside
from editkit.engine.guidance import ClassifierFree
from editkit.engine.invert import DDIM, Direct, replay
from editkit.engine.sample import sample
from editkit.types import Condition
from tests.engine.stand_ins import random

SOURCE, TARGET = Condition(tokens=random((3, 6, 8), 3)), Condition(tokens=random((3, 6, 8), 4))
BOTH = Condition(tokens=torch.cat([SOURCE.tokens, TARGET.tokens]))
CFG = ClassifierFree(7.5, Condition(tokens=torch.zeros(1, 6, 8, dtype=torch.float64)))


@pytest.fixture
def levels(worded):
    return worded.schedule.levels(8)


def edited(worded, trajectory, **changes):
    back = replay(trajectory)
    return sample(Beside(worded, CFG), cond=BOTH, **back | {"x": back["x"].repeat(2, 1, 1, 1)} | changes)


def test_the_sources_are_their_pivots_bit_for_bit(worded, x0, levels):
    trajectory = Direct().invert(worded, x0, levels, SOURCE)
    rectify, visited = replay(trajectory)["on_step"], {}

    def watch(i, j, x, pred):
        new = rectify(i, j, x, pred)
        visited[j] = x if new is None else new
        return new

    out = edited(worded, trajectory, on_step=watch, stop=levels.entry)
    assert torch.equal(out[:3], x0) and sorted(visited) == list(range(1, 8))
    assert all(torch.equal(visited[j][:3], trajectory.states[j]) for j in visited)


def test_the_edits_are_plain_guided_sampling(worded, x0, levels):
    """No attention is shared here, so nothing of the sources' correction may reach them."""
    trajectory = Direct().invert(worded, x0, levels, SOURCE)
    plain = sample(worded, trajectory.x, levels, TARGET, guidance=CFG)
    torch.testing.assert_close(edited(worded, trajectory)[3:], plain, rtol=1e-9, atol=1e-9)
    unguided = Beside(worded, ClassifierFree(1.0))
    both = sample(unguided, trajectory.x.repeat(2, 1, 1, 1), levels, BOTH)
    torch.testing.assert_close(both, sample(worded, trajectory.x.repeat(2, 1, 1, 1), levels, BOTH), rtol=1e-9, atol=1e-9)


def test_overwriting_is_adding_the_offsets(worded, x0, levels):
    """The paper's own form: a pass that records pivot - step(pivot above), and adds it to the sources in the edit."""
    trajectory, offsets = Direct().invert(worded, x0, levels, SOURCE), {}
    for i in range(trajectory.start, levels.entry, -1):
        landed = sample(Beside(worded, CFG), trajectory.states[i].repeat(2, 1, 1, 1), levels, BOTH, start=i, stop=i - 1)
        offsets[i - 1] = trajectory.states[i - 1] - landed[:3]

    def add(i, j, x, pred):
        return torch.cat([x[:3] + offsets[j], x[3:]]) if j in offsets else None

    torch.testing.assert_close(edited(worded, trajectory, on_step=add), edited(worded, trajectory), rtol=1e-8, atol=1e-8)


def test_without_rectification_or_with_the_pivot_of_the_step_before_the_source_is_lost(worded, x0, levels):
    trajectory = Direct().invert(worded, x0, levels, SOURCE)
    late = lambda i, j, x, pred: torch.cat([trajectory.states[i], x[3:]])  # noqa: E731
    for wrong in (None, late):
        out = edited(worded, trajectory, on_step=wrong, stop=levels.entry)
        assert (out[:3] - x0).abs().max() > 1e-3


def test_it_is_naive_inversion_on_the_way_up(worded, x0, levels):
    assert torch.equal(Direct().invert(worded, x0, levels, SOURCE).x, DDIM("target").invert(worded, x0, levels, SOURCE).x)
