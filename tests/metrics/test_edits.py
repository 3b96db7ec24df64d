from __future__ import annotations

import math

import pytest
import torch

from editkit.data.toyworld import faces
from editkit.metrics.edits import judge
from editkit.metrics.oracle import Oracle

SOURCE = faces.Face(expression="neutral", age=50.0, hair_colour="brown")
FACTORS = len(faces.CATEGORICAL) + len(faces.CONTINUOUS)


class Told(Oracle):
    """An oracle that is told which faces it is shown, so that only the judging is under test."""

    def __init__(self, shown):
        super().__init__(faces.CATEGORICAL, faces.CONTINUOUS, widths=(8, 8, 8), features=8)
        self.shown = shown

    def read(self, images):
        return self.truth(self.shown)


def judged(shown, *, wanted, implied, source=SOURCE):
    oracle = Told([shown])
    flags = {name: torch.tensor([seen]) for name, seen in faces.visible(source).items()}
    images = torch.zeros(1, 3, 64, 64)
    return judge(oracle, images, wanted=wanted, truth=oracle.truth([source]), visible=flags, implied=implied)


def smiling(shown, source=SOURCE):
    return judged(shown, wanted={"expression": "smiling"}, implied=faces.implied("expression"), source=source)


def test_the_truth_of_an_edit_has_full_marks():
    scores = smiling(faces.edited(SOURCE, expression="smiling"))
    assert (scores.success.item(), scores.preservation.item(), scores.score.item()) == (1, 1, 1)


def test_no_edit_preserves_everything_and_scores_nothing():
    scores = smiling(SOURCE)
    assert (scores.success.item(), scores.preservation.item(), scores.score.item()) == (0, 1, 0)


def test_every_other_factor_that_changes_costs_its_share():
    scores = smiling(faces.edited(SOURCE, expression="smiling", shirt="red", glasses=True))
    assert scores.success.item() == 1
    assert scores.preservation.item() == pytest.approx((FACTORS - 3) / (FACTORS - 1))
    assert scores.score.item() == pytest.approx(math.sqrt(scores.preservation.item()))
    assert [name for name, kept in scores.kept.items() if not kept] == ["shirt", "glasses"]


def test_a_moved_face_costs_a_continuous_factor():
    scores = smiling(faces.edited(SOURCE, expression="smiling", x=SOURCE.x + 0.02))
    assert scores.preservation.item() == pytest.approx((FACTORS - 2) / (FACTORS - 1))


def test_grey_hair_is_charged_to_a_smile_and_not_to_old_age():
    grey = faces.edited(SOURCE, age=75.0)
    aged = judged(grey, wanted={"age": (60.0, math.inf)}, implied=faces.implied("age"))
    assert (aged.success.item(), aged.preservation.item()) == (1, 1)
    assert "shown_hair" not in aged.kept
    smiled = smiling(faces.edited(grey, expression="smiling"))
    assert smiled.preservation.item() == pytest.approx((FACTORS - 3) / (FACTORS - 1))


def test_a_factor_that_the_source_does_not_show_does_not_count():
    bald = faces.edited(SOURCE, hair_style="bald")
    scores = smiling(faces.edited(bald, expression="smiling", hair_colour="red"), source=bald)
    assert scores.preservation.item() == 1
    assert scores.kept["shown_hair"].isnan().all()


def test_an_age_is_reached_inside_its_range_only():
    for age, reached in ((59.0, 0), (61.0, 1)):
        scores = judged(faces.edited(SOURCE, age=age), wanted={"age": (60.0, math.inf)}, implied=faces.implied("age"))
        assert scores.success.item() == reached
