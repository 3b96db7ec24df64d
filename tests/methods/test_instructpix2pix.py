"""InstructPix2Pix: what its network sees of a pair, and how it learns."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.inpainting import image_channels
from editkit.backbones.latent import LatentBackbone
from editkit.errors import UsageError
from editkit.methods.fully_supervised.instructpix2pix import InstructPix2Pix
from editkit.methods.fully_supervised.instructpix2pix import method as module
from editkit.training import denoising
from editkit.training.denoising import denoising_error, drop_conditions, posteriors
from editkit.types import Condition, Prediction
from tests.backbones import tiny_latent as tiny
from tests.methods.instructpix2pix_parts import TEXTS, batch, method, requests

# ---------------------------------------------------------------------------------------------------------- conditions


def independent(count, share, device=None):
    return torch.rand(count) < 2 * share, torch.rand(count) < 2 * share


@pytest.mark.parametrize(("draw", "right"), [(drop_conditions, True), (independent, False)], ids=["one draw", "two draws"])
def test_a_twentieth_each_goes_without_text_image_and_both(draw, right):
    torch.manual_seed(0)
    text, image = draw(100_000, 0.05)
    shares = torch.stack([text & ~image, text & image, image & ~text, ~text & ~image]).float().mean(1)
    assert torch.allclose(shares, torch.tensor([0.05, 0.05, 0.05, 0.85]), atol=0.003) == right


def test_processes_with_other_seeds_drop_others():
    torch.manual_seed(1)
    one = drop_conditions(1000)[0]
    torch.manual_seed(2)
    assert not torch.equal(one, drop_conditions(1000)[0])


def test_a_dropped_text_is_the_empty_one_and_a_dropped_image_is_zero(monkeypatch):
    """Easy wrong versions: a black picture's latents in place of zeros, zeros in place of the empty text's tokens."""
    made = method()
    monkeypatch.setattr(module, "drop_conditions", lambda *_: (torch.tensor([True, False]), torch.tensor([False, True])))
    cond = made.condition(batch())
    assert torch.equal(cond.tokens, made.backbone.tokens(["", TEXTS[1]]))
    assert torch.equal(cond.concat[0], image_channels(made.backbone, tiny.images(2))[0])
    assert torch.equal(cond.concat[1], torch.zeros_like(cond.concat[1]))
    black = image_channels(made.backbone, -torch.ones(1, 3, tiny.SIZE, tiny.SIZE))
    assert black.abs().max() > 0.01 and cond.tokens[0].abs().max() > 0.01


def test_the_source_is_the_unscaled_mean_in_training_and_editing_alike():
    """Easy wrong versions: scaling it in one of the two, or drawing a sample."""
    made = method(dropped=0.0)
    trained, edited = made.condition(batch()), made.editor([]).prepare(requests())
    assert torch.allclose(trained.concat, edited.both.concat, atol=1e-6)
    assert torch.equal(trained.concat, made.condition(batch()).concat), "the same at every draw"
    scaled = made.backbone.encode(tiny.images(2))
    assert not torch.allclose(trained.concat, scaled, atol=1e-2)


def test_the_target_is_a_scaled_draw(monkeypatch):
    made, seen = method(), []
    monkeypatch.setattr(module, "denoising_error", lambda backbone, x0, cond, **how: seen.append(x0) or x0.mean((1, 2, 3)))
    wide = torch.zeros(2, 2, 4, 16, 16)  # mean 0, variance 1
    for _ in range(2):
        made.loss(batch(image_posterior=wide, target_posterior=wide))
    assert not torch.equal(*seen)
    assert torch.cat(seen).std() == pytest.approx(0.18215, rel=0.1)


def test_pictures_and_encoded_ones_are_the_same():
    made = method()
    kept = torch.stack(made.backbone.posterior(tiny.images(2)), 1)
    assert torch.equal(posteriors(made.backbone, {"image": tiny.images(2)}, "image"), kept)
    assert posteriors(made.backbone, {"image_posterior": kept}, "image") is kept


# ------------------------------------------------------------------------------------------------------------ training


class Knowing(torch.nn.Module):
    """A denoiser that knows the truth."""

    def __init__(self, x0, kind, schedule, shift=0.0):
        super().__init__()
        self.x0, self.parameterization, self.schedule, self.shift = x0, kind, schedule, shift

    def forward(self, x, t, cond):
        assert len(t) == len(x) and t.min() >= 0 and t.max() < 1000
        a, s = self.schedule.coefficients(t, x)
        eps = (x - a * self.x0) / s
        return Prediction(self.x0 - s * self.shift / a, eps + self.shift)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_the_error_is_that_of_the_networks_own_output(kind):
    schedule, x0 = tiny.backbone().schedule, torch.randn(8, 4, 8, 8)
    torch.manual_seed(0)
    assert denoising_error(Knowing(x0, kind, schedule), x0, None).max() < 1e-4
    torch.manual_seed(0)
    error = denoising_error(Knowing(x0, kind, schedule, shift=0.5), x0, None)
    assert error.shape == (8,)
    if kind == "eps":
        assert torch.allclose(error, torch.full((8,), 0.25), atol=1e-3), "unweighted"
    else:  # a shift of eps by d, with x0 on the same x, shifts v by d / a
        assert error.min() > 0.25 and error.max() > 1


def test_times_cover_the_whole_schedule(monkeypatch):
    torch.manual_seed(0)
    times = []
    backbone = tiny.backbone()
    monkeypatch.setattr(type(backbone), "forward", lambda self, x, t, cond: times.append(t) or Prediction(x, x))
    for _ in range(300):
        denoising.denoising_error(backbone, torch.zeros(4, 4, 2, 2), None)
    seen = torch.cat(times)
    assert seen.min() < 10 and seen.max() > 989 and abs(float(seen.float().mean()) - 499.5) < 10
    first = torch.stack(times)[:, 0]
    assert first.max() < 250, "one time in each part"


def test_times_stay_within_the_shares_that_are_asked_for(monkeypatch):
    backbone, times = tiny.backbone(), []
    monkeypatch.setattr(type(backbone), "forward", lambda self, x, t, cond: times.append(t) or Prediction(x, x))
    for _ in range(100):
        denoising.denoising_error(backbone, torch.zeros(4, 4, 2, 2), None, times=(0.3, 0.8))
    seen = torch.cat(times)
    assert 300 <= seen.min() < 305 and 795 < seen.max() < 800
    for wrong in ((0.8, 0.3), (0.0, 1.5), (0.5,)):
        with pytest.raises(UsageError, match=r"method\.times=.* two shares"):
            method(times=wrong)


def test_places_that_the_edit_changes_count_more_when_asked(monkeypatch):
    """Easy wrong versions: weighing the draw's own noise, or what stays."""
    kept = torch.zeros(2, 2, 4, 16, 16)  # mean 0, variance 1: draws differ everywhere
    edited = kept.clone()
    edited[:, 0, :, 4:8, 4:8], edited[:, 0, :, 12, 12] = 2.0, 1.0
    seen = []
    monkeypatch.setattr(module, "denoising_error", lambda *args, weight, **how: seen.append(weight) or torch.zeros(2))
    for share in (0.0, 3.0):
        method(changed=share).loss(batch(image_posterior=kept, target_posterior=edited))
    assert seen[0] is None and seen[1].shape == (2, 1, 16, 16)
    assert seen[1][:, :, 4:8, 4:8].eq(4.0).all() and seen[1][:, :, 12, 12].eq(2.5).all() and seen[1][:, :, 0].eq(1.0).all()
    method(changed=3.0).loss(batch(image_posterior=kept, target_posterior=kept))
    assert seen[2].eq(1.0).all(), "nothing changes: nothing stands out"


def test_a_weighted_error_is_that_of_each_place_times_its_weight():
    schedule, x0 = tiny.backbone().schedule, torch.randn(8, 4, 8, 8)
    weight = torch.zeros(8, 1, 8, 8)
    weight[:, :, :4] = 3.0
    error = denoising_error(Knowing(x0, "eps", schedule, shift=0.5), x0, None, weight=weight)
    assert torch.allclose(error, torch.full((8,), 0.375), atol=1e-3)


def test_it_starts_as_the_model_it_came_from_whatever_the_image():
    """An easy wrong version gives the widened convolution a new bias."""
    plain, made = tiny.backbone(), method()
    x, tokens = tiny.noise(2), plain.tokens(TEXTS)
    with torch.no_grad():
        was = plain(x, 400.0, Condition(tokens=tokens)).eps
        for image in (torch.zeros(2, 4, 16, 16), torch.randn(2, 4, 16, 16)):
            assert torch.allclose(made.backbone(x, 400.0, Condition(tokens=tokens, concat=image)).eps, was, atol=1e-5)
        made.backbone.unet.conv_in.bias.normal_()
        assert not torch.allclose(made.backbone(x, 400.0, Condition(tokens=tokens, concat=image)).eps, was, atol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_and_only_the_unet_changes(checkpointing):
    made = method(checkpointing=checkpointing)
    frozen = {name: tensor.clone() for name, tensor in made.state_dict().items() if not name.startswith("backbone.unet.")}
    assert frozen and not made.backbone.vae.training and made.backbone.unet.training
    optimizer = made.optimizer(made.trainable()["unet"])
    kept = {name: posteriors(made.backbone, batch(), name) for name in ("image", "target")}
    encoded = batch(**{f"{name}_posterior": posterior.repeat(8, 1, 1, 1, 1) for name, posterior in kept.items()})
    encoded["instruction"] = TEXTS * 8
    torch.manual_seed(0)
    losses = []
    for _ in range(8 if checkpointing else 40):
        loss = made.loss(encoded)["denoise"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < (0.95 if checkpointing else 0.7) * sum(losses[:4])
    after = made.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in frozen.items())
    assert made.backbone.unet.conv_in.weight[:, 4:].abs().max() > 0, "it has begun to see the image"


def test_a_share_that_three_cannot_have_and_backbones_of_other_kinds_are_refused():
    with pytest.raises(UsageError, match=r"method\.dropped=0\.4"):
        method(dropped=0.4)
    with pytest.raises(UsageError, match="4 or 8 input channels, this backbone's has 9: choose backbone=sd15"):
        method(tiny.backbone(9))
    made = tiny.parts()
    with pytest.raises(UsageError, match="a model that reads no text"):
        method(LatentBackbone(made["unet"], made["vae"], made["scheduler"].config))
    with pytest.raises(UsageError, match="a model of pixels"):
        InstructPix2Pix(backbone=torch.nn.Linear(1, 1))


def test_a_grid_shows_source_edit_and_answer_also_of_encoded_pairs():
    made = method()
    kept = {name: posteriors(made.backbone, batch(), name) for name in ("image", "target")}
    plain = {name: batch()[name] for name in ("image", "target", "instruction", "key")}
    items = [{name: value[n] for name, value in plain.items()} for n in range(2)]
    hidden = [
        {f"{name}_posterior": kept[name][n] for name in kept} | {"instruction": "make it blue", "key": "c"} for n in range(2)
    ]
    for dataset in (items, hidden):
        made.precompute(dataset)
        assert made.sample_grid().shape == (2, 3, 3, tiny.SIZE, tiny.SIZE)
