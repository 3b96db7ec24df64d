"""EffDiff's single-image mode."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.effdiff.editor import grid
from editkit.methods.weakly_supervised.effdiff.single import stalled
from tests.methods.asyrp_parts import Images
from tests.methods.effdiff_parts import T0, tiny_method


@pytest.fixture(scope="module")
def images():
    return Images(3)


def single(**changes):
    settings = {"single_image": True, "iterations": 4, "plateau": 0.0, "n_test": 3, "growth": 1.0}
    method = tiny_method(**(settings | changes))
    return method, method.editor([])


def asked(images, **changes):
    return [request.with_(prompt="a smiling face", **changes) for request in images.requests()]


def test_one_image_needs_no_trained_file_and_shows_every_iteration(images):
    method, editor = single()
    assert method.trainable() == {} and method.tuned is None and editor.per_image
    before = method.backbone.digest()
    with torch.no_grad():
        (fitted,) = editor.prepare(asked(images)[:1])
    assert fitted.images.shape == (5, 3, 8, 8) and fitted.calls == 4 + 5 * 3
    assert method.backbone.digest() == before
    moved = (fitted.images[1:] - fitted.images[:-1]).abs().flatten(1).amax(1)
    assert (moved > 1e-4).all()
    with pytest.raises(UsageError, match="effdiff needs --prompt"):
        editor.check(images.requests())


def test_before_the_first_iteration_it_is_the_plain_way_back(images):
    method, editor = single()
    (fitted,) = editor.prepare(asked(images)[:1])
    x = method.encode(images.images[:1], ["image/0"], seed=[0], sample=[0])
    with torch.no_grad():
        plain = sample(method.backbone, x, grid(method.backbone.schedule, 3, T0))
    assert torch.equal(fitted.images[:1], plain)


def test_strength_picks_the_iteration(images):
    _, editor = single()
    requests = asked(images)[:1]
    state = editor.prepare(requests)
    for strength, iteration in ((None, 4), (1.0, 4), (0.5, 2), (0.0, 0)):
        result = editor.edit([requests[0].with_(strength=strength)], state)
        assert torch.equal(result.images[0], state[0].images[iteration])
        assert result.scores["iterations"] == [iteration]
    with pytest.raises(UsageError, match="from 0"):
        editor.edit([requests[0].with_(strength=1.5)], state)


def test_every_image_starts_from_the_original_weights(images):
    """An easy wrong version goes on with the network of the image before."""
    _, editor = single()
    first, second = asked(images)[:2]
    alone = editor.prepare([second])[0]
    after = editor.prepare([first, second])[1]
    assert torch.equal(alone.images, after.images)
    assert not torch.allclose(editor.prepare([second.with_(prompt="an old man")])[0].images, alone.images, atol=1e-4)


def test_it_stops_on_a_plateau(images):
    rising = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert not stalled(rising, 0.01) and stalled([*rising, 0.5, 0.5, 0.5], 0.01)
    assert not stalled([0.0, 0.0, 0.0], 0.01) and stalled([0.0] * 4, 0.01) and not stalled([0.0] * 9, 0.0)
    _, still = single(iterations=10, plateau=0.01, optimizer=partial(torch.optim.SGD, lr=0.0))
    assert 4 <= len(still.prepare(asked(images)[:1])[0].images) < 11


def test_several_noised_copies_are_learned_from(images):
    _, editor = single(copies=2)
    (fitted,) = editor.prepare(asked(images)[:1])
    (alone,) = single()[1].prepare(asked(images)[:1])
    assert torch.equal(fitted.images[0], alone.images[0])
    assert not torch.allclose(fitted.images[-1], alone.images[-1], atol=1e-5)


def test_the_rate_grows_with_the_iterations(images):
    (fast,) = single(growth=2.0)[1].prepare(asked(images)[:1])
    (slow,) = single()[1].prepare(asked(images)[:1])
    assert torch.equal(fast.images[1], slow.images[1])
    assert F.l1_loss(fast.images[-1], fast.images[0]) > F.l1_loss(slow.images[-1], slow.images[0])
