"""Scores of scene edits, with a judge that reads perfectly: only the counting is under test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from editkit.data.items import image_tensor
from editkit.data.toyworld.scenes.drawing import picture, render
from editkit.data.toyworld.scenes.edits import KINDS
from editkit.data.toyworld.scenes.factors import readable
from editkit.data.toyworld.scenes.world import edit_at
from editkit.metrics.scene_edits import Expectation, against_truth, expected, judged, kept_by_factor, score
from tests.metrics.perfect import reading


def expectation(edit) -> Expectation:
    masks = [torch.from_numpy(picture(scene).seen) for scene in (edit.source, edit.target)]
    return expected(edit, *masks, readable(edit.source), readable(edit.target))


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_has_full_marks_and_no_edit_preserves_everything(kind):
    for edit in (edit_at("test", k, (kind,)) for k in range(8)):
        what = expectation(edit)
        assert what.asked and what.kept
        assert judged(what, reading(edit.target, what)) == (1, 1), edit.instruction
        assert judged(what, reading(edit.source, what)) == (0, 1), edit.instruction


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [("recolour", {"colour": "pink"}), ("reshape", {"shape": "ring"}), ("retexture", {"texture": "dotted"})],
)
def test_the_wrong_value_fails(kind, wrong):
    (name,) = wrong
    edits = (edit_at("test", k, (kind,)) for k in range(60))
    edit = next(e for e in edits if wrong[name] not in (getattr(e.before, name), getattr(e.after, name)))
    things = tuple(replace(one, **wrong) if one == edit.after else one for one in edit.target.things)
    what = expectation(edit)
    assert judged(what, reading(replace(edit.target, things=things), what)) == (0, 1)


def test_an_edit_of_the_wrong_object_fails_and_is_charged():
    edit = next(e for e in (edit_at("test", k, ("recolour",)) for k in range(60)) if len(e.source.things) == 2)
    other = next(thing for thing in edit.source.things if thing != edit.before)
    colour = next(c for c in ("pink", "green", "cyan") if c not in {t.colour for t in edit.source.things})
    things = tuple(replace(one, colour=colour) if one == other else one for one in edit.source.things)
    what = expectation(edit)
    happened, kept = judged(what, reading(replace(edit.source, things=things), what))
    assert happened == 0 and kept == pytest.approx(1 - 1 / len(what.kept))


def test_the_right_change_with_another_background_costs_its_share():
    edit = next(e for e in (edit_at("test", k, ("recolour",)) for k in range(60)) if e.source.place == "beach")
    what = expectation(edit)
    happened, kept = judged(what, reading(replace(edit.target, place="street"), what))
    assert happened == 1 and kept == pytest.approx(1 - 1 / len(what.kept))


def test_something_else_in_its_place_is_not_removed_and_a_copy_is_not_moved():
    edit = edit_at("test", 0, ("remove",))
    what = expectation(edit)
    things = tuple(replace(one, shape="ring", colour="pink") if one == edit.before else one for one in edit.source.things)
    assert judged(what, reading(replace(edit.source, things=things), what))[0] == 0
    moves = (edit_at("test", k, ("move",)) for k in range(60))
    move = next(e for e in moves if abs(e.before.x - e.after.x) > 2 * e.before.size)
    what = expectation(move)
    assert judged(what, reading(replace(move.target, things=(*move.target.things, move.before)), what))[0] == 0


def test_what_a_style_hides_is_not_charged():
    edits = [e for e in (edit_at("test", k, ("restyle",)) for k in range(60)) if e.target.style == "pencil"]
    what = expectation(edits[0])
    assert {name for claim in what.kept for name in claim.values} == {"place", "time", "count", "shape", "texture"}
    grey = tuple(replace(one, colour="pink") for one in edits[0].target.things)
    assert judged(what, reading(replace(edits[0].target, things=grey), what)) == (1, 1)


def test_a_batch_is_scored_picture_by_picture():
    edits = [edit_at("test", k) for k in range(4)]
    whats = [expectation(edit) for edit in edits]
    shown = [edit.target if k % 2 else edit.source for k, edit in enumerate(edits)]
    scores = score(whats, [reading(*pair) for pair in zip(shown, whats, strict=True)])
    assert scores.success.tolist() == scores.score.tolist() == [0, 1, 0, 1]
    assert scores.preservation.tolist() == [1, 1, 1, 1]


def test_pixels_are_compared_with_the_truth_where_it_differs_from_the_source():
    edit = edit_at("test", 1, ("recolour",))
    source, truth = (image_tensor(render(scene))[None] for scene in (edit.source, edit.target))
    unedited, right = against_truth(source, source, truth), against_truth(truth, source, truth)
    assert unedited["psnr_outside"] == right["psnr_outside"] == right["psnr_inside"] == 60
    assert unedited["psnr_inside"] < 25


def test_what_was_kept_is_counted_by_factor_over_the_claims_about_it():
    edit = next(e for e in (edit_at("test", k, ("recolour",)) for k in range(60)) if len(e.source.things) == 2)
    other = next(thing for thing in edit.target.things if thing != edit.after)
    things = tuple(
        replace(one, texture="dotted" if one.texture != "dotted" else "plain") if one == other else one
        for one in edit.target.things
    )
    what = expectation(edit)
    kept = kept_by_factor([what, what], [reading(edit.target, what), reading(replace(edit.target, things=things), what)])
    assert kept["texture"].tolist() == [1, 0.5] and kept["shape"].tolist() == kept["place"].tolist() == [1, 1]
    assert kept["season"].isnan().all() == ("season" not in readable(edit.source))
