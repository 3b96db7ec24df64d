"""The line on how fast a folder was edited."""

from __future__ import annotations

import pytest
import torch

from editkit.app.pace import Pace, pace


def multiplied(samples):
    return [sample @ sample for sample in samples]


def test_operations_are_counted_once_and_hold_for_all():
    measured = Pace(peak=1e9)
    work = measured.timed(multiplied, count=True)
    for count in (2, 3):
        assert len(work([torch.ones(10, 10)] * count)) == count
    assert measured.flops == 2 * 10**3 and measured.images == 5 and measured.working > 0
    measured.working = 0.5
    assert measured.line(1.0) == "5 images in 1 s, 5.0/s, 50% of the time computing at 2e-05 GFLOP/s (0% of the peak)"


def test_what_is_compiled_is_not_looked_into():
    measured = Pace()
    measured.timed(multiplied, count=False)([torch.ones(2, 2)])
    assert measured.flops is None and "FLOP" not in measured.line(1.0)


def test_nothing_done_is_not_worth_a_line():
    assert Pace().line(1.0) == ""


@pytest.mark.parametrize(
    ("images", "seconds", "line"), [(500, 42, "500 images in 42 s, 11.9/s"), (1, 3, "1 image in 3 s, 3.0 s each")]
)
def test_pieces_a_second_or_seconds_a_piece(images, seconds, line):
    assert pace(images, seconds) == line
