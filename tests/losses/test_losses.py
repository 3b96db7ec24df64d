"""The directional CLIP loss and its neighbours, on an encoder with known answers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from editkit.losses.clip_direction import DirectionalClip
from editkit.losses.identity import Identity
from editkit.losses.perceptual import Perceptual
from editkit.losses.templates import TEMPLATES, fill


class ToyEncoder(torch.nn.Module):
    """Embeds an image as its three channel means, a text by its letters."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def image(self, images):
        return F.normalize(images.mean((2, 3)) + torch.tensor([0.5, 0.2, 0.1]), dim=-1)

    def text(self, texts):
        self.seen += texts
        rows = [[sum(map(ord, text)) % 17, text.count("e") + 1, text.count("a") + 2] for text in texts]
        return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def images(count=3, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def loss():
    return DirectionalClip(ToyEncoder(), "a face", "a smiling face")


def test_there_are_79_templates():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 79
    assert all(template.count("*") == 1 for template in TEMPLATES)
    assert fill("a photo of the *.", "angry face") == "a photo of the angry face."


def test_direction_is_the_mean_over_all_templates(loss):
    encoder = ToyEncoder()
    per_template = [encoder.text([fill(t, "a smiling face")]) - encoder.text([fill(t, "a face")]) for t in TEMPLATES]
    assert torch.allclose(loss.direction, F.normalize(torch.cat(per_template).mean(0), dim=0), atol=1e-6)
    assert loss.direction.norm() == pytest.approx(1, abs=1e-6)


def test_one_template_is_not_enough(loss):
    """An easy wrong version uses the bare prompt: its direction differs."""
    bare = DirectionalClip(ToyEncoder(), "a face", "a smiling face", templates=["*"])
    assert not torch.allclose(bare.direction, loss.direction, atol=1e-3)


def test_swapping_the_texts_flips_the_direction(loss):
    swapped = DirectionalClip(ToyEncoder(), "a smiling face", "a face")
    assert torch.allclose(swapped.direction, -loss.direction, atol=1e-6)


def test_text_cosine_is_of_the_raw_prompts(loss):
    a, b = ToyEncoder().text(["a face", "a smiling face"])
    assert loss.text_cosine == pytest.approx(float(a @ b), abs=1e-6)
    assert DirectionalClip(ToyEncoder(), "a face", "a face").text_cosine == pytest.approx(1, abs=1e-6)


def test_an_unmoved_image_costs_ln2_and_has_a_finite_gradient(loss):
    x = images().requires_grad_()
    source = loss.features(x.detach())
    value = loss.log(x, source)
    assert torch.allclose(value, torch.full((3,), math.log(2)), atol=1e-3)
    value.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_cosine_is_per_image(loss):
    source, target = images(), images(seed=1)
    features = loss.features(source)
    together = loss.cosine(target, features)
    assert together.shape == (3,)
    for k in range(3):
        assert torch.allclose(together[k : k + 1], loss.cosine(target[k : k + 1], features[k : k + 1]), atol=1e-6)


def test_averaging_moves_over_the_batch_is_another_loss(loss):
    """An easy wrong version normalises the batch's mean move."""
    source, target = images(), images(seed=1)
    features = loss.features(source)
    moves = loss.clip.image(target) - features
    wrong = F.normalize(moves.mean(0), dim=0) @ loss.direction
    assert abs(float(wrong - loss.cosine(target, features).mean())) > 1e-3


def test_log_form(loss):
    features, target = loss.features(images()), images(seed=1)
    plain = loss(target, features)
    assert torch.allclose(loss.log(target, features), -torch.log((2 - plain) / 2), atol=1e-5)


def test_identity_and_perceptual_take_features_computed_once():
    net = lambda x: F.normalize(x.mean((2, 3)), dim=-1)  # noqa: E731
    identity = Identity(net)
    x, y = images(), images(seed=1)
    assert torch.allclose(identity(x, identity.features(x)), torch.zeros(3), atol=1e-6)
    assert ((identity(y, identity.features(x)) >= 0) & (identity(y, identity.features(x)) <= 2)).all()

    class Stages(torch.nn.Module):
        def forward(self, x):
            return [x]

        def compare(self, a, b):
            return (a[0] - b[0]).square().mean((1, 2, 3))

    perceptual = Perceptual(Stages())
    assert torch.equal(perceptual(x, perceptual.features(x)), torch.zeros(3))
    assert (perceptual(y, perceptual.features(x)) > 0).all()
