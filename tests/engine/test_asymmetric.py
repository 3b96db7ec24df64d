"""The asymmetric denoiser: what it equals without a shift, what it costs with one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from editkit.engine.asymmetric import Asymmetric
from editkit.engine.count import count_calls
from editkit.engine.sample import sample
from editkit.types import Prediction
from tests.engine.stand_ins import assert_near


def constant(value):
    return lambda h, t: torch.full_like(h, value)


def test_without_a_shift_it_is_the_backbone_bit_for_bit(backbone, images):
    levels = backbone.schedule.levels(6)
    with torch.no_grad():
        plain = sample(backbone, images, levels)
        assert torch.equal(sample(Asymmetric(backbone, lambda h, t: None), images, levels), plain)
        # A shift of zeros runs the decoder on twice the batch: equal up to the choice of kernels.
        assert_near(sample(Asymmetric(backbone, constant(0.0)), images, levels), plain, 1e-5)


def test_x0_comes_from_the_shifted_bottleneck_and_eps_from_the_plain_one(backbone, images):
    with torch.no_grad():
        pred = Asymmetric(backbone, constant(0.5))(images, 500.0)
        h, finish = backbone.halves(images, 500.0)
        plain, edited = finish([h])[0], finish([h + 0.5])[0]
    assert_near(pred.eps, plain.eps)
    assert_near(pred.x0, edited.x0)
    assert (pred.x0 - plain.x0).abs().max() > 1e-2


def test_the_symmetric_step_nearly_cancels_the_edit(backbone, images):
    """Easy wrong version: the shifted eps in both terms. On a fine grid hardly anything of the edit is left (theorem 1)."""
    levels = backbone.schedule.levels_at([499, 500])

    class Symmetric(Asymmetric):
        def __call__(self, x, t, cond=None):
            h, finish = self.denoiser.halves(x, t, cond)
            return finish([h + self.shift(h, t)])[0]

    with torch.no_grad():
        plain, right, wrong = (
            sample(denoiser, images, levels, stop=1)
            for denoiser in (backbone, Asymmetric(backbone, constant(0.5)), Symmetric(backbone, constant(0.5)))
        )
    assert (right - plain).abs().mean() > 100 * (wrong - plain).abs().mean()


def test_the_shift_sees_the_bottleneck_and_the_time(backbone, images):
    seen = []

    def shift(h, t):
        seen.append((tuple(h.shape), t))

    levels = backbone.schedule.levels(3)
    with torch.no_grad():
        sample(Asymmetric(backbone, shift), images, levels)
    assert seen == [((3, *backbone.bottleneck_shape), t) for t in levels.times[:0:-1]]


def test_one_encoder_and_two_decoder_passes(backbone, images):
    with torch.no_grad(), count_calls(backbone) as plain:
        backbone(images, 500.0)
    with torch.no_grad(), count_calls(backbone) as edited:
        Asymmetric(backbone, constant(0.5))(images, 500.0)
    with torch.no_grad(), count_calls(backbone) as off:
        Asymmetric(backbone, lambda h, t: None)(images, 500.0)
    assert (plain.calls, plain.encoder, plain.decoder) == (1, 3, 3)
    assert (edited.calls, edited.encoder, edited.decoder) == (1, 3, 6)
    assert (off.calls, off.encoder, off.decoder) == (1, 3, 3)
    assert plain.flops < edited.flops < 2 * plain.flops
    assert off.flops == plain.flops


def test_phases_of_one_run_are_counted_step_by_step(backbone, images):
    levels = backbone.schedule.levels(8)
    shift = lambda h, t: torch.zeros_like(h) if t >= 500 else None  # noqa: E731
    edited = sum(t >= 500 for t in levels.times)
    with torch.no_grad(), count_calls(backbone) as counter:
        sample(Asymmetric(backbone, shift), images[:1], levels)
    assert (counter.calls, counter.encoder, counter.decoder) == (8, 8, 8 + edited) and 0 < edited < 8


def test_gradients_reach_the_shift_through_x0_only(backbone, images):
    delta = nn.Parameter(torch.zeros(1, *backbone.bottleneck_shape))
    pred = Asymmetric(backbone, lambda h, t: delta.expand_as(h))(images, 500.0)
    assert isinstance(pred, Prediction)
    (through_x0,) = torch.autograd.grad(pred.x0.square().sum(), delta, retain_graph=True)
    (through_eps,) = torch.autograd.grad(pred.eps.square().sum(), delta, allow_unused=True, materialize_grads=True)
    assert through_x0.abs().max() > 0
    assert through_eps.abs().max() == 0


def test_it_is_a_denoiser(backbone):
    wrapped = Asymmetric(backbone, constant(0.0))
    assert wrapped.schedule is backbone.schedule and wrapped.parameterization == backbone.parameterization
    with pytest.raises(AttributeError):
        wrapped.shift = None
