"""EffDiff's training: its invariants, and easy wrong versions that break them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from editkit.engine.count import count_calls
from editkit.engine.rng import noise
from editkit.errors import UsageError
from editkit.losses.clip_direction import log_distance
from editkit.methods.weakly_supervised.effdiff import EffDiff
from editkit.methods.weakly_supervised.effdiff.editor import Encoder
from tests.methods import diffusionclip_parts
from tests.methods.asyrp_parts import Images, TinyClip, ready, tiny_backbone
from tests.methods.diffusionclip_parts import TinyIdentity, convolutions, per_call
from tests.methods.effdiff_parts import T0, first_update, tiny_method


@pytest.fixture(scope="module")
def images():
    return Images(3)


# Encoding.


def test_states_are_images_plus_noise_of_t0_itself(images):
    backbone = tiny_backbone()
    keys = [request.key for request in images.requests()]
    x = Encoder(backbone, T0)(images.images, keys, seed=3)
    drawn = torch.stack([noise((3, 8, 8), seed=3, key=key, purpose="effdiff/encode") for key in keys])
    assert torch.allclose(x, 0.532 * images.images + 0.847 * drawn, atol=4e-3)
    assert torch.allclose(x, backbone.schedule.add_noise(images.images, T0, drawn), atol=1e-6)
    # an easy wrong version takes the time before
    assert not torch.allclose(x, backbone.schedule.add_noise(images.images, T0 - 1, drawn), atol=1e-4)


def test_an_image_s_noise_is_drawn_once():
    method, data = ready(tiny_method()), Images(2)
    first = method.sources(data.batch([0, 1]))["x"]
    method.stepper.run(data.batch([0, 1]))
    assert torch.equal(method.sources(data.batch([1, 0]))["x"], first.flip(0))


def test_noise_that_is_redrawn_is_noticed():
    """An easy wrong version of the paper's setting, and the option `fresh`: repeatable, but another at each visit."""
    visits = []
    for _ in range(2):
        method, data = ready(tiny_method(latent_noise="fresh")), Images(2)
        for _ in range(2):
            method.stepper.run(data.batch([0, 1]))
            visits.append(method.sources(data.batch([0, 1]))["x"])
    assert not torch.allclose(visits[0], visits[1], atol=1e-2)
    assert torch.equal(visits[0], visits[2]) and torch.equal(visits[1], visits[3])


def test_the_deterministic_encoder_is_diffusionclip_s_bit_for_bit():
    backbone, data = tiny_backbone(), Images(2)
    other = ready(diffusionclip_parts.tiny_method(backbone=backbone, t0=T0))
    method = ready(tiny_method(backbone=backbone, encoder="ddim"))
    assert torch.equal(method.sources(data.batch([0, 1]))["x"], other.compute_sources(data.images)["x"])


def test_the_original_network_inverts_whatever_was_trained():
    """An easy wrong version inverts with the edited one."""
    method, data = ready(tiny_method(encoder="ddim")), Images(2)
    before = method.sources(data.batch([0, 1]))["x"]
    with torch.no_grad():
        for parameter in method.network().parameters():
            parameter.add_(0.02)
    assert torch.equal(method.sources(data.batch([0, 1]))["x"], before)
    wrong = Encoder(method.network(), T0, "ddim", 8)(data.images, ["a", "b"], seed=0)
    assert not torch.allclose(wrong, before, atol=1e-3)


# Training.


class Spied(torch.nn.Module):
    """Hands on what a network is asked, and keeps the times."""

    def __init__(self, network):
        super().__init__()
        self.network, self.times = network, []

    def forward(self, x, t, cond=None):
        self.times.append(float(t))
        return self.network(x, t, cond)


def test_an_update_is_one_call_at_t0():
    method, data = ready(tiny_method()), Images(4)
    network = method.network()
    method.tuned = Spied(network)
    method.precompute(data)
    for rows in ([0, 1], [2, 3], [1, 2]):
        (update,) = method.updates(data.batch(rows))
        assert convolutions(update.total()) == per_call(network)
    assert method.tuned.times == [T0] * 3


def test_a_random_time_is_noticed():
    """An easy wrong version draws the time anew, as diffusion models are trained."""

    class Random(EffDiff):
        def updates(self, batch):
            self.t0 = int(torch.randint(1, 999, ()))
            yield from super().updates(batch)

    torch.manual_seed(0)
    clip, data = TinyClip(), Images(2)
    method = ready(
        Random(
            backbone=tiny_backbone(),
            clip=lambda: clip,
            prompt="a smiling face",
            source_prompt="a face",
            optimizer=partial(torch.optim.Adam, lr=1e-3),
        )
    )
    method.tuned = Spied(method.network())
    for _ in range(3):
        first_update(method, data)
    assert set(method.tuned.times) != {float(T0)}


def test_the_gradient_is_that_of_the_loss_through_the_one_call():
    method, data = ready(tiny_method(l1_weight=2.0)), Images(2)
    x = method.sources(data.batch([0, 1]))["x"]
    first_update(method, data).total().backward()
    got = [p.grad.clone() for p in method.network().parameters()]
    method.zero_grad(set_to_none=True)
    network, direction = method.network(), method.criterion.direction
    a, s = method.backbone.schedule.coefficients(T0, x)
    estimate = (x - s * network(x, T0).eps) / a
    clip = log_distance(direction.cosine(estimate, direction.features(data.images)))
    (3.0 * clip.mean() + 2.0 * (estimate - data.images).abs().mean()).backward()
    for own, parameter in zip(got, network.parameters(), strict=True):
        assert torch.allclose(own, parameter.grad, atol=1e-4)


def test_closeness_is_to_the_sharp_image():
    """An easy wrong version compares with the original network's own estimate: before any training it would be 0."""
    method, data = ready(tiny_method()), Images(2)
    update = first_update(method, data)
    x = method.sources(data.batch([0, 1]))["x"]
    with torch.no_grad():
        estimate = method.backbone(x, T0).x0
        assert torch.allclose(update.losses["l1"], (estimate - data.images).abs().mean((1, 2, 3)), atol=1e-5)
        assert (method.network()(x, T0).x0 - estimate).abs().mean() == 0
    assert update.losses["l1"].min() > 0.05


def test_no_identity_term_is_reported_unless_it_has_a_weight():
    data = Images(2)
    assert set(first_update(ready(tiny_method(identity=TinyIdentity)), data).losses) == {"clip", "l1"}
    active = ready(tiny_method(identity=TinyIdentity, identity_weight=0.3))
    assert set(first_update(active, data).losses) == {"clip", "l1", "identity"}


def test_only_the_copy_is_trained_and_features_are_computed_once():
    clip, data = TinyClip(), Images(4)
    method = ready(tiny_method(clip=clip), steps=None, images=12)
    before = method.backbone.digest()
    with count_calls(method.backbone, flops=False) as counter:
        method.precompute(data)
        assert clip.seen == 4
        for rows in ([0, 1], [2, 3], [1, 0]):
            method.stepper.run(data.batch(rows))
    assert counter.calls == 0 and clip.seen == 4 + 6
    assert method.backbone.digest() == before != method.network().digest()
    others = [p for n, p in method.named_parameters() if not n.startswith("tuned.")]
    assert all(p.grad is None and not p.requires_grad for p in others)


def test_inversions_are_made_for_the_images_used_and_kept(tmp_path):
    data, backbone = Images(4), tiny_backbone()
    settings = {"backbone": backbone, "encoder": "ddim", "cache": str(tmp_path)}
    for expected, texts in ((4 * 7, {}), (0, {"prompt": "an old face"})):
        method = ready(tiny_method(**settings, **texts), steps=None, images=8)
        with count_calls(backbone, flops=False) as counter:
            method.precompute(data)
            method.stepper.run(data.batch([3, 0]))
        assert counter.evaluations == expected
    once = ready(tiny_method(encoder="ddim"), steps=None, images=2)
    with count_calls(once.backbone, flops=False) as counter:
        once.precompute(data)
        assert counter.evaluations == 0
        once.stepper.run(data.batch([1, 2]))
    assert counter.evaluations == 2 * 7


def test_training_lowers_the_clip_loss():
    method, data = ready(tiny_method(optimizer=partial(torch.optim.Adam, lr=3e-3))), Images(2)
    means = []
    for _ in range(6):
        method.stepper.run(data.batch([0, 1]))
        means.append(method.stepper.meter.take()["loss/clip"])
    assert means[-1] < means[0]


def test_wrong_settings_say_what_to_type():
    for changes, said in (
        ({"encoder": "inversion"}, "encoder=inversion"),
        ({"latent_noise": "none"}, "fixed or fresh"),
        ({"n_test": 41}, "1 to 40"),
        ({"t0": 5000}, "5000"),
    ):
        with pytest.raises(UsageError, match=said):
            tiny_method(**changes)
