"""Exemplar pairs from boxes: the masks' shapes and shares, the references' origin, the augmentation's geometry."""

from __future__ import annotations

import pytest
import torch

from editkit.data import box_exemplars, reference_views
from editkit.data.box_exemplars import BoxExemplars, box_of, fit_boxes
from editkit.data.box_masks import extended, outline, sides, training_mask
from editkit.data.module import DataModule
from editkit.data.reference_views import another_view, bend, blurred, cut_out, turn, warped
from editkit.errors import UsageError, UserError

BOX = (20, 24, 52, 60)
SIZE = (80, 96)  # height, width


class Boxes(DataModule):
    """A stand-in: each picture's pixels say where they are; some have no box."""

    def __init__(self, *boxes):
        super().__init__()
        self.boxes = boxes

    def dataset(self, split):
        ramp = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij"))
        image = torch.cat([ramp, torch.zeros(1, 64, 64)])
        return [
            {"image": image, "key": f"{k}.png", "index": k, "caption": "", "boxes": torch.tensor(rows)}
            for k, rows in enumerate(self.boxes)
        ]


def rectangle(mask):
    """Return the box of a mask if it fills it, else None."""
    left, top, right, bottom = box = box_of(mask[0])
    return box if mask.sum() == (right - left) * (bottom - top) else None


def test_half_of_the_masks_are_rectangles_that_hold_the_box_and_none_leaves_the_extended_one():
    torch.manual_seed(0)
    rectangles = 0
    for _ in range(200):
        mask, outer = training_mask(BOX, SIZE, jitter=3)
        assert mask.shape == (1, *SIZE) and set(mask.unique().tolist()) == {0.0, 1.0}
        left, top, right, bottom = box_of(mask[0])
        if rectangle(mask) == outer:
            rectangles += 1
            assert left <= BOX[0] and top <= BOX[1] and right >= BOX[2] and bottom >= BOX[3]
        assert left >= outer[0] - 4 and top >= outer[1] - 4 and right <= outer[2] + 5 and bottom <= outer[3] + 5
    assert 70 < rectangles < 130
    assert all(rectangle(training_mask(BOX, SIZE, shaped=0.0)[0]) for _ in range(20))
    assert not any(rectangle(training_mask(BOX, SIZE, shaped=1.0)[0]) for _ in range(20))


def test_a_side_moves_by_up_to_two_fifths_of_its_way_to_the_frame():
    torch.manual_seed(0)
    outer = torch.tensor([extended(BOX, SIZE) for _ in range(300)])
    reach = torch.tensor([int(0.4 * 20), int(0.4 * 24), int(0.4 * (96 - 52)), int(0.4 * (80 - 60))])
    moved = (outer - torch.tensor(BOX)).abs()
    assert moved.amax(0).tolist() == reach.tolist() and moved.amin(0).tolist() == [0] * 4
    assert (outer[:, :2] <= torch.tensor(BOX[:2])).all() and (outer[:, 2:] >= torch.tensor(BOX[2:])).all()


def test_the_curves_start_and_end_on_the_box_and_bulge_half_way_to_the_extended_one():
    outer = (10, 20, 60, 70)
    corners = {(20, 24), (52, 24), (52, 60), (20, 60)}
    assert {curve[0] for curve in sides(BOX, outer)} == {curve[2] for curve in sides(BOX, outer)} == corners
    points = torch.tensor(outline(BOX, outer, 0))
    tops = points[points[:, 1] < 24]
    assert tops[:, 1].min() == pytest.approx(22.0, abs=0.05), "not on the extended box: a curve reaches half its control point"
    assert points[:, 0].min() == pytest.approx(15.0, abs=0.05) and points[:, 1].max() == pytest.approx(65.0, abs=0.05)
    assert 40 <= len(points) <= 72, "10 to 18 points of a curve"
    assert len(outline(BOX, BOX, 0)) == 4, "a side without bulge gives one point"
    torch.manual_seed(0)
    jittered = torch.tensor(outline(BOX, outer, 5)) - points
    assert float(jittered.abs().max()) == pytest.approx(5, abs=1e-4) and torch.allclose(jittered, jittered.round(), atol=1e-4)


def test_a_reference_is_the_box_of_the_picture_itself_with_a_margin():
    image = torch.arange(3 * 80 * 96).float().view(3, 80, 96)
    assert torch.equal(cut_out(image, BOX, 10), image[:, 14:70, 10:62])
    assert torch.equal(cut_out(image, (2, 3, 20, 30), 10), image[:, :40, :30]), "cut at the frame"


def test_a_view_is_flipped_turned_blurred_and_warped_with_the_published_chances(monkeypatch):
    torch.manual_seed(0)
    chances = []
    monkeypatch.setattr(reference_views, "_happens", lambda chance: chances.append(chance))
    picture = torch.rand(3, 30, 50)
    plain = another_view(picture, 28)
    assert chances == [0.5, 0.5, 0.3, 0.3] and plain.shape == (3, 28, 28)
    monkeypatch.setattr(reference_views, "_happens", lambda chance: True)
    assert not torch.allclose(another_view(picture, 28), plain, atol=0.05)


def test_a_warp_is_exact_where_it_can_be_and_mirrors_at_the_edge():
    view = torch.rand(3, 9, 9)
    same = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    shifted = torch.tensor([[1.0, 0, 2], [0, 1, 0]], dtype=torch.float64)
    assert torch.allclose(warped(view, same), view, atol=1e-5)
    moved = warped(view, shifted)
    assert torch.allclose(moved[:, :, :7], view[:, :, 2:], atol=1e-5), "a pixel shows what is two to its right"
    assert torch.allclose(moved[:, :, 7:], view[:, :, [7, 6]], atol=1e-5), "mirrored without repeating the last pixel"


def test_a_turn_is_about_the_middle():
    matrix = turn(10, 20.0)
    middle = torch.tensor([5.0, 5.0, 1.0], dtype=torch.float64)
    assert torch.allclose(matrix @ middle, middle[:2])
    assert torch.allclose(matrix[:, :2] @ matrix[:, :2].T, torch.eye(2, dtype=torch.float64))
    assert torch.linalg.det(matrix[:, :2]) == pytest.approx(1) and matrix[0, 0] == pytest.approx(0.9397, abs=1e-4)


def test_a_bend_moves_its_three_points_by_up_to_its_reach():
    torch.manual_seed(0)
    anchors = torch.tensor([[186, 186, 1], [186, 38, 1], [38, 38, 1]], dtype=torch.float64)
    farthest = 0.0
    for _ in range(30):
        back = torch.cat([bend(224), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)])
        moved = (torch.linalg.inv(back) @ anchors.T).T - anchors
        assert moved.abs().max() <= 50 + 1e-6
        farthest = max(farthest, float(moved.abs().max()))
    assert farthest > 40


def test_a_blur_is_a_mean_over_a_square():
    view = torch.rand(3, 12, 12)
    assert torch.allclose(blurred(view, 5)[:, 4, 6], view[:, 2:7, 4:9].mean((1, 2)), atol=1e-6)
    assert torch.allclose(blurred(view, 3)[:, 0, 0], view[:, [1, 0, 1]][:, :, [1, 0, 1]].mean((1, 2)), atol=1e-6)


def test_pairs_come_from_boxes_of_a_fit_size_in_the_picture_before_it_is_masked():
    torch.manual_seed(0)
    good = [16, 16, 48, 40]
    tiny, huge = [0, 0, 6, 6], [0, 0, 64, 63]
    pairs = BoxExemplars(Boxes([tiny, good, huge, [0] * 4], [huge]), 32, padding=0, jitter=0).dataset("train")
    for _ in range(10):
        pair = pairs[0]
        assert pair["mask"].shape == (1, 64, 64) and pair["references"][0].shape == (3, 32, 32)
        assert pair["mask"][0, 20:36, 20:44].all(), "about the box, whose middle is always inside"
        rows = pair["references"][0][0]
        assert rows.min() > -0.8 and rows.max() < 0.6, "the reference shows the box's rows, 16 to 40 of 64"
    assert pairs[1]["key"] == "0.png", "a picture without a fit box gives the pair of the next one"
    with pytest.raises(UserError, match="none of the 1 pictures has a box between 2% and 80%"):
        BoxExemplars(Boxes([huge])).dataset("train")[0]
    with pytest.raises(UsageError, match="are shares"):
        BoxExemplars(Boxes(), smallest=0.5, largest=0.2)


def test_only_the_reference_is_changed(monkeypatch):
    pairs = BoxExemplars(Boxes([[16, 16, 48, 40]]), 32, padding=0).dataset("train")
    assert torch.equal(pairs[0]["image"], pairs.inner[0]["image"])
    views = [pairs[0]["references"][0] for _ in range(8)]
    assert any(not torch.equal(views[0], view) for view in views)
    monkeypatch.setattr(box_exemplars, "another_view", lambda reference, side: reference)
    assert torch.equal(pairs[0]["references"][0], pairs.inner[0]["image"][:, 16:40, 16:48]), "cut from the whole picture"


def test_a_mask_will_do_for_a_box():
    mask = torch.zeros(1, 64, 64)
    mask[:, 10:30, 12:40] = 1
    item = {"image": torch.zeros(3, 64, 64), "key": "a.png", "mask": mask}
    assert fit_boxes(item, 0.02, 0.8) == [(12, 10, 40, 30)] and fit_boxes(item, 0.5, 0.8) == []
    with pytest.raises(UserError, match="a.png has neither boxes nor a mask"):
        fit_boxes({**item, "mask": None}, 0.02, 0.8)
    assert box_of(torch.zeros(4, 4)) == (0, 0, 0, 0)
