"""Faces in styles: a style changes how a face is drawn and nothing of what it is."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from editkit.data.styled_faces import StyledFaceDataset, StyledFaces
from editkit.data.toyworld import faces
from editkit.data.toyworld.faces import Face
from editkit.data.toyworld.styled import (
    COLOURS,
    HIDDEN,
    STYLES,
    caption,
    in_style,
    key_of,
    measured,
    render,
    styled_at,
    styled_named,
    visible,
)
from editkit.data.toyworld.styles import CALLED
from editkit.data.toyworld.world import caption_at, face_at
from editkit.errors import UsageError


def drawn(style, count=24, size=64):
    return np.stack([render(styled_at("train", k, style), size)[0] for k in range(count)]).astype(float)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_keeps_the_face_and_its_parts(style):
    plain, styled = face_at("test", 5), styled_at("test", 5, style)
    assert all(getattr(styled, field.name) == getattr(plain, field.name) for field in fields(Face))
    assert styled.shown_hair == plain.shown_hair and measured(styled)["style"] == style
    picture, labels = render(styled)
    whole, parts = faces.render(plain, 64, labels=True)
    assert (labels == parts).all() and (picture == whole).all() == (style == "plain")
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8


def test_styles_are_told_apart_by_their_colours_and_edges_alone():
    def look(pictures):
        grey = pictures.mean(-1)
        edges = np.abs(np.diff(grey, axis=2)).mean((1, 2))
        spread = pictures.std(-1).mean((1, 2))
        deep = np.abs(grey[:, ::2, ::2] - grey[:, 1::2, 1::2]).mean((1, 2))
        return np.stack([grey.mean((1, 2)), edges, spread, deep], 1)

    seen = {style: look(drawn(style)) for style in STYLES}
    means = {style: rows[:12].mean(0) for style, rows in seen.items()}
    scale = np.concatenate(list(seen.values())).std(0)
    right = [
        min(means, key=lambda name: (((row - means[name]) / scale) ** 2).sum()) == style
        for style, rows in seen.items()
        for row in rows[12:]
    ]
    assert np.mean(right) > 0.75, "chance is one in seven"


@pytest.mark.parametrize("style", ["pencil", "ink"])
def test_styles_without_colour_say_so(style):
    picture = drawn(style, 8)
    inks = picture.std(-1).max() if style == "pencil" else len(np.unique(picture.reshape(-1, 3), axis=0))
    assert inks == (0 if style == "pencil" else 2)
    assert HIDDEN[style] >= COLOURS and not any(visible(styled_at("test", 0, style))[name] for name in COLOURS)


@pytest.mark.parametrize("style", STYLES[1:])
def test_a_style_looks_the_same_at_another_size(style):
    face = styled_at("validation", 2, style)
    small, large = (render(face, size)[0].astype(float) for size in (64, 128))
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(small.mean((0, 1)) - halved.mean((0, 1))).max() < 16


def test_items_show_each_face_in_one_style_and_name_it():
    data = StyledFaceDataset("validation", 12, styles=["ink", "neon"])
    keys = [data[k]["key"] for k in range(12)]
    assert len({key.split("/")[-1] for key in keys}) == 12 and keys[0] == key_of("validation", 0, "ink")
    for k in (0, 1):
        item = data[k]
        face = styled_named(item["key"])
        assert item["caption"].startswith(CALLED[face.style] + " of ") and item["factors"]["style"] == face.style
        assert np.array_equal(((item["image"] + 1) * 127.5).round().permute(1, 2, 0).byte().numpy(), render(face)[0])
    assert set(data[0]["factors"]) == set(data[0]["visible"]) == set(measured(face))
    assert caption("validation", 0, "plain") == caption_at("validation", 0).text


@pytest.mark.parametrize(
    ("styles", "said"), [([], "needs one or more"), (["ink", "ink"], "each once"), (["inc"], "Did you mean 'ink'")]
)
def test_wrong_styles_are_one_line(styles, said):
    with pytest.raises(UsageError, match=said):
        StyledFaces(styles=styles).dataset("train")


def test_an_unknown_style_of_a_face_is_named():
    with pytest.raises(UsageError, match="no style 'pencl'. Did you mean 'pencil'"):
        in_style(face_at("train", 0), "pencl")
