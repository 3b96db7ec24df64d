"""The loss of a text-guided edit, on an encoder with known answers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from editkit.errors import UsageError
from editkit.losses.clip_direction import DirectionalClip
from editkit.losses.identity import Identity
from editkit.losses.text_edit import TextEdit


class ToyEncoder(torch.nn.Module):
    """Embeds an image as its three channel means, a text by its letters."""

    def image(self, images):
        return F.normalize(images.mean((2, 3)) + torch.tensor([0.5, 0.2, 0.1]), dim=-1)

    def text(self, texts):
        rows = [[sum(map(ord, text)) % 17, text.count("e") + 1, text.count("a") + 2] for text in texts]
        return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def corner(images):
    return F.normalize(images[:, :, :2, :2].flatten(1) + 0.3, dim=1)


def text_edit(*texts, **weights):
    return TextEdit(DirectionalClip(ToyEncoder(), *(texts or ("a face", "a smiling face"))), Identity(corner), **weights)


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_unmoved_image_costs_ln_2_and_nothing_else(images):
    loss = text_edit(clip_weight=3.0, l1_weight=1.0, identity_weight=0.5)
    terms, report = loss(images, images, loss.features(images))
    assert torch.allclose(terms["clip"], torch.full((3,), 3 * math.log(2)), atol=1e-5)
    assert torch.allclose(terms["l1"], torch.zeros(3)) and torch.allclose(terms["identity"], torch.zeros(3), atol=1e-6)
    assert torch.allclose(report["clip_direction"], torch.zeros(3), atol=1e-5)


def test_likeness_to_the_target_text_is_not_the_direction(images):
    """An easy wrong version takes the cosine of the image and the target text: an unmoved image does not cost ln 2."""
    loss = text_edit()
    wrong = -torch.log((1 + (loss.direction.clip.image(images) * loss.direction.clip.text(["a smiling face"])).sum(-1)) / 2)
    assert not torch.allclose(wrong, torch.full((3,), math.log(2)), atol=1e-2)


def test_swapped_texts_turn_the_direction_round(images):
    there, back = text_edit("a face", "a smiling face"), text_edit("a smiling face", "a face")
    cosines = [loss(images + 0.1, images, loss.features(images))[1]["clip_direction"] for loss in (there, back)]
    assert torch.allclose(cosines[0], -cosines[1], atol=1e-5)


def test_terms_are_per_image_and_weighted(images):
    loss = text_edit(clip_weight=0.0, l1_weight=2.0, identity_weight=0.5)
    edited = images + torch.tensor([0.0, 0.1, 0.2])[:, None, None, None]
    terms, _ = loss(edited, images, loss.features(images))
    assert torch.allclose(terms["l1"], torch.tensor([0.0, 0.2, 0.4]), atol=1e-5)
    assert torch.allclose(terms["identity"], 0.5 * (1 - (corner(edited) * corner(images)).sum(-1)), atol=1e-6)
    assert terms["clip"].abs().max() == 0


def test_without_a_weight_there_is_no_identity_term(images):
    loss = text_edit(identity_weight=0.0)
    assert set(loss.features(images)) == {"clip"}
    assert set(loss(images, images, loss.features(images))[0]) == {"clip", "l1"}
    with pytest.raises(UsageError, match=r"method\.identity"):
        TextEdit(loss.direction, identity_weight=0.3)


def test_it_computes_in_float32_under_autocast(images):
    loss = text_edit()
    expected = loss(images + 0.05, images, loss.features(images))[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(images + 0.05, images, loss.features(images))[0]
    assert all(torch.equal(got[name], expected[name]) for name in expected)
