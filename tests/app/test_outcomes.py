"""What baselines made, kept for the other methods of a family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from editkit.app import contest
from editkit.app.loaded import Loaded
from editkit.app.outcomes import kept_or
from editkit.app.questions.faces import make_cases
from editkit.data.toyworld.world import find_edit
from tests.app import trials


@pytest.fixture(scope="module")
def cases():
    return make_cases(find_edit("smiling"), "test", 3)


class Maker:
    """Makes an outcome, and counts how often."""

    def __init__(self, cases):
        self.cases, self.count = cases, 0

    def __call__(self):
        self.count += 1
        return contest.run(trials.Told(self.cases, wrong=self.cases.keys[:1]), self.cases, batch_size=2)


def entrant(**provenance):
    return Loaded("told", None, (64, 64), 8, provenance={"method": "told", **provenance})


def test_it_is_made_once_and_comes_back_bit_for_bit(cases, tmp_path):
    make = Maker(cases)
    first = kept_or(tmp_path, entrant(versions={"torch": "1"}), cases, {"seed": 0}, make)
    again = kept_or(tmp_path, entrant(versions={"torch": "2"}), cases, {"seed": 0}, make)
    assert make.count == 1
    assert list(again.variants) == list(first.variants)
    assert all(torch.equal(again.variants[kind], first.variants[kind]) for kind in first.variants)
    assert (again.seconds, again.calls, again.returned) == (first.seconds, first.calls, None)
    returned = Maker(cases)
    back = kept_or(tmp_path, entrant(), cases, {"seed": 1}, lambda: replace(returned(), returned=cases.truth))
    assert torch.equal(kept_or(tmp_path, entrant(), cases, {"seed": 1}, returned).returned, back.returned)
    assert returned.count == 1


@pytest.mark.parametrize("change", ["weights", "setting", "edit", "pictures"])
def test_anything_else_is_made_anew(cases, tmp_path, change):
    make = Maker(cases)
    kept_or(tmp_path, entrant(weights="a"), cases, {"steps": 5}, make)
    one, other, settings = entrant(weights="b" if change == "weights" else "a"), cases, {"steps": 5}
    if change == "setting":
        settings = {"steps": 6}
    elif change == "edit":
        other = replace(cases, edit=find_edit("angry"))
    elif change == "pictures":
        other = replace(cases, images=cases.images.flip(3))
    kept_or(tmp_path, one, other, settings, make)
    assert make.count == 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("left", [b"", b"half a file"])
def test_a_broken_file_is_made_anew(cases, tmp_path, left):
    make = Maker(cases)
    kept_or(tmp_path, entrant(), cases, {}, make)
    [file] = tmp_path.iterdir()
    file.write_bytes(left)
    kept_or(tmp_path, entrant(), cases, {}, make)
    kept_or(tmp_path, entrant(), cases, {}, make)
    assert make.count == 2 and list(tmp_path.iterdir()) == [file]
