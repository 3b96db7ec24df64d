"""The CLIP of faces in styles: what its pairs and captions say, which way its pictures must move, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from editkit.data.scene_classes import UNSEEN
from editkit.data.styled_pairs import StyledPairs
from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.styled import HIDDEN, STYLES, in_style, styled_at, styled_named
from editkit.data.toyworld.styled_captions import caption, told, truth
from editkit.data.toyworld.styles import CALLED
from editkit.data.toyworld.world import counterfactual, face_at
from editkit.methods.foundation.clip import StyleClip
from editkit.methods.foundation.clip import styles as module
from editkit.methods.foundation.clip.robust import direction_loss
from editkit.methods.foundation.clip.styles import factor_classes
from editkit.training import style_figures

TERMS = {"factors": 1.0, "contrast": 1.0, "direction": 1.0, "colour": 1.0, "attack": 1.0}


@pytest.fixture(scope="module")
def words() -> list[str]:
    return module.styled_corpus(100)


@pytest.fixture
def clip(monkeypatch, words) -> StyleClip:
    monkeypatch.setattr(module, "styled_corpus", lambda: words)
    torch.manual_seed(0)
    return StyleClip(width=32, layers=2, image_size=32, dim=16, terms=TERMS, init_from=None)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_pair_is_one_face_in_two_styles(share):
    pairs = StyledPairs("train", 32, 16, styled=share)
    goals = set()
    for k in range(16):
        item = pairs[k]
        face, other = item["face"], item["other_face"]
        assert in_style(face, "plain") == in_style(other, "plain") and face == styled_named(item["key"])
        assert face.style != other.style != "plain" and (face.style == "plain") == (share == 0)
        assert not torch.equal(item["image"], item["other"])
        for shown, said in zip((face, other), item["captions"], strict=True):
            assert said.claims["style"] == (shown.style,)
        goals.add(other.style)
    assert len(goals) > 2


@pytest.mark.parametrize("style", STYLES)
def test_a_caption_of_a_style_is_true_of_its_face_and_of_that_style_alone(style):
    rng = np.random.default_rng(0)
    drawn = [caption(styled_at("train", k, style), rng) for k in range(12)]
    faces = [styled_at("train", k, other) for other in STYLES for k in range(12)]
    true, clear = truth(drawn, faces)
    first = STYLES.index(style) * 12
    own = slice(first, first + 12)
    assert true[:, own].diagonal().all() and clear[:, own].diagonal().all()
    others = np.delete(true, np.r_[own], axis=1), np.delete(clear, np.r_[own], axis=1)
    assert not others[0].any() and others[1].all()
    assert all(HIDDEN.get(style, frozenset()).isdisjoint(said.claims) for said in drawn)


def test_styles_are_told_in_several_ways_and_plain_in_none():
    rng = np.random.default_rng(0)
    ways = {told("a face", "pencil", rng) for _ in range(60)}
    assert {"a pencil drawing of a face", "a face as a pencil sketch"} <= ways and len(ways) > 6
    assert told("a face", "plain", rng) == "a face"


def test_what_a_style_hides_is_neither_right_nor_wrong_there():
    smiling = [in_style(counterfactual(face_at("train", 0), "smiling"), style) for style in ("pencil", "mosaic")]
    said = [Caption(f"{CALLED[f.style]} of a sad face", {"expression": ("sad",), "style": (f.style,)}) for f in smiling]
    true, clear = truth(said, smiling)
    assert not true.any() and clear.tolist() == [[True, True], [True, False]]
    classes = factor_classes("expression", smiling)
    assert classes[0] != UNSEEN and classes[1] == UNSEEN
    assert factor_classes("style", smiling).tolist() == [STYLES.index(face.style) for face in smiling]


def one_axis_each(monkeypatch, clip):
    """Let the prompt of each style be a unit vector of its own."""
    monkeypatch.setattr(clip, "_read", lambda texts: torch.eye(16)[: len(texts)])
    return torch.eye(16)


def test_the_direction_term_wants_each_face_along_the_way_to_its_style(clip, monkeypatch):
    axes = one_axis_each(monkeypatch, clip)
    starts, goals = ["plain", "plain", "ink", "neon"], ["pencil", "neon", "mosaic", "poster"]
    batch = {
        name: [styled_at("train", 0, style) for style in styles] for name, styles in (("face", starts), ("other_face", goals))
    }
    ways = clip._ways(batch)
    torch.testing.assert_close(ways.every, F.normalize(axes[1:7] - axes[:1], dim=1))
    place = lambda styles: axes[[STYLES.index(style) for style in styles]]  # noqa: E731
    moves = F.normalize(place(goals) - place(starts), dim=1)
    right = direction_loss(moves, ways.choices, ways.own)
    elsewhere = F.normalize(place(["ink", "mosaic", "neon", "pencil"]) - place(starts), dim=1)
    for wrong in (-moves, elsewhere):  # back to where it came from, and on to another style
        assert direction_loss(wrong, ways.choices, ways.own) > 10 * right
    from_plain = F.normalize(place(goals) - axes[0], dim=1)  # forgets that the last two were in a style
    assert direction_loss(from_plain, ways.choices, ways.own) > 1.5 * right


def test_training_lowers_its_loss(clip):
    torch.manual_seed(0)
    batch = clip.dummy_batch()
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    totals = []
    for _ in range(12):
        torch.manual_seed(1)
        losses = clip.loss(batch)
        assert losses.keys() == TERMS.keys()
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert all(parameter.grad is not None for parameter in clip.clip.vision_model.parameters())
    assert totals[-1] < 0.8 * totals[0]


class Knowing:
    """A CLIP that takes pictures and prompts for unit vectors of their styles; some styles for another."""

    def __init__(self, **mistaken: str):
        self.mistaken = mistaken

    def text(self, texts):
        return torch.eye(7)[[next((k for k, s in enumerate(STYLES) if CALLED.get(s, "-") in text), 0) for text in texts]]

    def image(self, codes):
        names = [STYLES[int(code)] for code in codes]
        return torch.eye(7)[[STYLES.index(self.mistaken.get(name, name)) for name in names]]


def test_the_figures_are_shares_and_cosines_of_each_style(monkeypatch):
    class Coded:
        def pictures(self, faces):
            return torch.tensor([STYLES.index(face.style) for face in faces])

    monkeypatch.setattr(style_figures, "KNOWN", {"styles": Coded()})
    figures = style_figures.clip_style_figures(Knowing(ink="neon"), images=3)
    assert figures["zero-shot plain"] == figures["zero-shot pencil"] == figures["direction neon"] == 1
    assert figures["zero-shot ink"] == figures["nearest direction ink"] == 0 and figures["direction ink"] == 0.5
