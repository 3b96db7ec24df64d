"""A face turned upright by five landmarks: the published crop, and every pixel back in its place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.app.inputs import subject
from editkit.data.align import Aligned, align, parse_landmarks, read_landmarks
from editkit.data.fit import Fit, to_tensor
from editkit.data.photo import photo_from_pil
from editkit.errors import UsageError, UserError

UPRIGHT = np.array([(80.0, 90.0), (120.0, 90.0), (100.0, 110.0), (85.0, 130.0), (115.0, 130.0)])


def smooth(width: int, height: int) -> Image.Image:
    """A picture without symmetry and without fine detail."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + 1), np.cos(y / 23), np.sin((x + 2 * y) / 31)]
    return Image.fromarray(np.stack([127 + 120 * wave for wave in waves], 2).astype(np.uint8))


def turned(points: np.ndarray, degrees: float, about: tuple[float, float]) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (points - about) @ np.array([[cos, sin], [-sin, cos]]) + about


def test_the_square_of_an_upright_face_is_the_published_one():
    square = align(UPRIGHT, (200, 220), (64, 64))
    # Eyes 40 apart, mouth 40 below: the side is the larger of 4 * 40 and 3.6 * 40, its centre a tenth of the way to the mouth.
    assert square.right == pytest.approx((160.0, 0.0)) and square.down == pytest.approx((0.0, 160.0))
    assert np.add(square.corner, 80) == pytest.approx((100.0, 94.0))
    long = UPRIGHT + np.array([(0, 0), (0, 0), (0, 0), (0, 40), (0, 40)])
    assert np.hypot(*align(long, (200, 220), (64, 64)).right) == pytest.approx(3.6 * 80)


@pytest.mark.parametrize("degrees", [-35.0, 20.0, 90.0, 180.0])
def test_a_turned_face_gives_the_same_square_turned(degrees):
    upright, square = align(UPRIGHT, (400, 400), (64, 64)), align(turned(UPRIGHT, degrees, (100, 100)), (400, 400), (64, 64))
    assert turned(np.array([upright.corner]), degrees, (100, 100))[0] == pytest.approx(square.corner)
    assert turned(np.array([upright.right]), degrees, (0, 0))[0] == pytest.approx(square.right, abs=1e-9)


def test_without_turning_or_scaling_it_is_the_plain_crop_to_the_bit():
    photo = photo_from_pil(smooth(90, 70))
    square, crop = Aligned((10.0, 3.0), (64.0, 0.0), (0.0, 64.0), (64, 64)), Fit((10, 3, 74, 67), (64, 64))
    assert torch.equal(square.image(photo), crop.image(photo))
    edited = torch.rand(3, 64, 64) * 2 - 1
    assert np.array_equal(square.paste(photo, edited).rgb, crop.paste(photo, edited).rgb)
    assert square.relative((10, 3, 42, 67)) == pytest.approx(crop.relative((10, 3, 42, 67)))


def test_turning_brings_the_eyes_to_one_line_where_the_crop_wants_them():
    points = turned(UPRIGHT, 25, (100, 100))
    dots = np.zeros((220, 220, 3), np.uint8)
    for x, y in points[:2]:
        dots[round(y) - 4 : round(y) + 4, round(x) - 4 : round(x) + 4] = 255
    seen = align(points, (220, 220), (64, 64)).image(photo_from_pil(Image.fromarray(dots)))[0] > 0
    left, right = seen[:, :32].nonzero().float().mean(0), seen[:, 32:].nonzero().float().mean(0)
    assert abs(left[0] - right[0]) < 1.0, "eyes on one line"
    assert left[0] == pytest.approx((0.5 - 4 / 160) * 64, abs=1.0) and right[1] + 32 - left[1] == pytest.approx(16, abs=1.0)


@pytest.mark.parametrize("degrees", [0.0, 33.0, -120.0])
def test_there_and_back_changes_little_inside_and_nothing_outside(degrees):
    photo = photo_from_pil(smooth(240, 260))
    square = align(turned(UPRIGHT + 20, degrees, (120, 120)), photo.size, (128, 128))
    returned = square.paste(photo, square.image(photo))
    changed = (returned.rgb != photo.rgb).any(2)
    error = np.abs(returned.rgb.astype(int) - photo.rgb.astype(int))
    assert error.max() <= 6, "a smooth picture survives the resampling, its place is met"
    black = square.paste(photo, -torch.ones(3, 128, 128)).rgb
    inside = (black == 0).all(2)
    assert inside.sum() == pytest.approx(np.hypot(*square.right) ** 2, rel=0.02)
    assert not (changed & ~inside).any() and np.array_equal(black[~inside], photo.rgb[~inside])


def test_a_mask_limits_what_is_pasted_and_arrives_in_the_models_picture():
    photo = photo_from_pil(smooth(240, 260))
    square = align(turned(UPRIGHT + 20, 15, (120, 120)), photo.size, (64, 64))
    mask = np.zeros((260, 240), bool)
    mask[100:103, 90:150] = True
    pasted = square.paste(photo, torch.ones(3, 64, 64), mask).rgb
    assert np.array_equal(pasted[~mask], photo.rgb[~mask]) and (pasted[mask] == 255).all()
    seen = square.mask(mask)
    assert seen.shape == (1, 64, 64) and 20 < seen.sum() < 120, "a thin line survives"


def test_outside_the_photograph_the_picture_goes_on_mirrored():
    photo = photo_from_pil(smooth(110, 140))
    square = Aligned((-20.0, 10.0), (64.0, 0.0), (0.0, 64.0), (64, 64))
    seen = square.image(photo)
    own = to_tensor(Image.fromarray(photo.rgb))[:, 10:74]
    assert torch.equal(seen[:, :, 20:], own[:, :, :44]) and torch.equal(seen[:, :, :20], own[:, :, :20].flip(2))
    assert np.array_equal(square.paste(photo, seen).rgb, photo.rgb)


def test_numbers_in_any_form(tmp_path):
    expected = UPRIGHT.tolist()
    typed = " ".join(f"{x},{y}" for x, y in expected)
    assert parse_landmarks(typed).tolist() == parse_landmarks(expected).tolist() == expected
    table = tmp_path / "list_landmarks_align_celeba.txt"
    table.write_text(
        "2\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y a b c d\n000001.jpg " + typed.replace(",", " ") + "\n"
    )
    assert parse_landmarks(read_landmarks(table)["000001.jpg"]).tolist() == expected
    table.write_text("a b.png," + typed.replace(" ", ",") + "\n")
    assert parse_landmarks(read_landmarks(table)["a b.png"]).tolist() == expected


def test_wrong_landmarks_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="9 numbers where ten are needed"):
        parse_landmarks("1 2 3 4 5 6 7 8 9")
    with pytest.raises(UserError, match="lie outside it"):
        align(UPRIGHT, (100, 100), (64, 64))
    with pytest.raises(UserError, match="left eye, right eye"):
        align(UPRIGHT[[1, 0, 2, 4, 3]], (200, 220), (64, 64))
    with pytest.raises(UserError, match="left eye, right eye"):
        align(np.full((5, 2), 50.0), (200, 220), (64, 64))
    (tmp_path / "empty.txt").write_text("nothing\n")
    with pytest.raises(UserError, match="has no landmarks"):
        read_landmarks(tmp_path / "empty.txt")
    with pytest.raises(UsageError, match="leave out --fit crop"):
        subject("a", smooth(200, 220), {}, {"landmarks": str(UPRIGHT.tolist())}, (64, 64), how="crop")


def test_a_request_sees_the_face_upright():
    picture = smooth(240, 260)
    points = turned(UPRIGHT + 20, 30, (120, 120))
    made = subject("a", picture, {}, {"landmarks": str(points.tolist()), "prompt": "a face"}, (64, 64))
    assert made.request.prompt == "a face" and isinstance(made.fit, Aligned)
    assert torch.equal(made.request.image, align(points, (240, 260), (64, 64)).image(photo_from_pil(picture)))
