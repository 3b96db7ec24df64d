"""Guidance: branches in one call, and what every guidance reduces to at its boundaries."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.guidance import PLAIN, ClassifierFree, Clip, Energy, Guided, predict, with_eps, with_x0
from editkit.engine.lanes import evaluate, select, stack
from editkit.engine.sample import sample
from editkit.types import Condition, Prediction
from tests.engine.stand_ins import SHAPE, Calls, Wavy, random

T = 400.0


def conditions(n=3):
    return Condition(vector=random((n, 48), 4)), Condition(vector=random((1, 48), 5))


# ------------------------------------------------------------------------------------------------- classifier-free


def test_weights_one_and_zero_are_the_branches_alone_bit_for_bit(wavy, x0):
    c, u = conditions()
    for weight, only in ((1, c), (0, Condition(vector=u.vector.expand(3, -1)))):
        counted = Calls(wavy)
        pred = predict(counted, x0, T, c, ClassifierFree(weight, u))
        alone = wavy(x0, T, only)
        assert torch.equal(pred.eps, alone.eps) and torch.equal(pred.x0, alone.x0) and counted.batches == [3]


def test_both_branches_go_through_the_network_in_one_call(wavy, x0):
    c, u = conditions()
    counted = Calls(wavy)
    pred = predict(counted, x0, T, c, ClassifierFree(7.5, u))
    assert counted.batches == [6] and counted.times == [T]
    with_c, with_u = wavy(x0, T, c), wavy(x0, T, u)
    torch.testing.assert_close(pred.eps, with_u.eps + 7.5 * (with_c.eps - with_u.eps), rtol=1e-9, atol=1e-9)
    a, s = wavy.schedule.coefficients(T, x0)
    torch.testing.assert_close(pred.x0, (x0 - s * pred.eps) / a, rtol=1e-9, atol=1e-9)


def test_equal_branches_make_the_weight_irrelevant(wavy, x0):
    c, _ = conditions()
    torch.testing.assert_close(predict(wavy, x0, T, c, ClassifierFree(7.5, c)).eps, wavy(x0, T, c).eps, rtol=1e-9, atol=1e-9)


def test_the_order_of_lanes_leaves_results_unchanged(wavy, x0):
    c, u = conditions()
    first = evaluate(wavy, [(x0, T, c), (x0, T, u), (x0[:1], 50.0, u)])
    second = evaluate(wavy, [(x0[:1], 50.0, u), (x0, T, u), (x0, T, c)])[::-1]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one.eps, other.eps, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(one.x0, other.x0, rtol=1e-10, atol=1e-10)


def test_outside_its_interval_guidance_is_off(wavy, x0):
    c, u = conditions()
    guidance = ClassifierFree(7.5, u, interval=(300, 500))
    for t, lanes in ((299.0, 3), (300.0, 6), (500.0, 6), (501.0, 3)):
        counted = Calls(wavy)
        predict(counted, x0, t, c, guidance)
        assert counted.batches == [lanes]
    with pytest.raises(ValueError, match="one time"):
        guidance.branches(c, torch.tensor([1.0, 2.0]))


def test_rescaling_is_per_sample_and_ends_at_the_conditional_spread(wavy, x0):
    c, u = conditions()
    mixed = x0 * torch.tensor([0.1, 1.0, 5.0]).reshape(-1, 1, 1, 1)
    full = predict(wavy, mixed, T, c, ClassifierFree(7.5, u, rescale=1.0))
    torch.testing.assert_close(full.eps.flatten(1).std(1), wavy(mixed, T, c).eps.flatten(1).std(1))
    plain = predict(wavy, mixed, T, c, ClassifierFree(7.5, u))
    assert torch.equal(predict(wavy, mixed, T, c, ClassifierFree(7.5, u, rescale=0.0)).eps, plain.eps)
    whole_batch = plain.eps * wavy(mixed, T, c).eps.std() / plain.eps.std()
    assert not torch.allclose(whole_batch.flatten(1).std(1), full.eps.flatten(1).std(1), rtol=1e-2)
    a, s = wavy.schedule.coefficients(T, x0)
    torch.testing.assert_close(a * full.x0 + s * full.eps, mixed, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- energy


def towards(target):
    return lambda x0, t: (x0 - target).square().flatten(1).sum(1)


def test_energy_lowers_itself(wavy, x0):
    levels, target = wavy.schedule.levels(20), torch.full(SHAPE, 0.5, dtype=torch.float64)
    energy = towards(target)
    plain = energy(sample(wavy, x0, levels), 0)
    for through_unet in (True, False):
        guided = energy(sample(wavy, x0, levels, guidance=Energy(energy, 0.2, interval=(0, 600), through_unet=through_unet)), 0)
        assert (guided < 0.7 * plain).all()


def test_energy_gradient_is_the_gradient_at_x(wavy, x0):
    energy, scale = towards(torch.zeros(SHAPE)), 0.7
    pred = predict(wavy, x0, T, None, Energy(energy, scale))
    x = x0.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(wavy(x, T).x0, T).sum(), x)
    a, s = wavy.schedule.coefficients(T, x0)
    torch.testing.assert_close(pred.eps, wavy(x0, T).eps + scale * s * slope, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a * pred.x0 + s * pred.eps, x0, rtol=1e-9, atol=1e-9)
    frozen = predict(wavy, x0, T, None, Energy(energy, scale, through_unet=False))
    x0_hat = wavy(x0, T).x0
    torch.testing.assert_close(frozen.eps, wavy(x0, T).eps + scale * s * 2 * x0_hat / a, rtol=1e-9, atol=1e-9)


def test_energy_of_scale_zero_or_outside_its_interval_records_no_graph(wavy, x0):
    def never(x0, t):
        raise AssertionError("the energy was asked")

    for guidance in (Energy(never, 0.0), Energy(never, 1.0, interval=(500, 900))):
        assert not guidance.needs_grad(T)
        pred = predict(wavy, x0, T, None, guidance)
        assert torch.equal(pred.eps, wavy(x0, T).eps) and torch.equal(pred.x0, wavy(x0, T).x0)


def test_a_constant_energy_changes_nothing(wavy, x0):
    for constant in (lambda x0, t: torch.ones(len(x0)), lambda x0, t: 0 * x0.flatten(1).sum(1)):
        for through_unet in (True, False):
            pred = predict(wavy, x0, T, None, Energy(constant, 5.0, through_unet=through_unet))
            assert torch.equal(pred.eps, wavy(x0, T).eps)


def test_an_energy_does_not_see_the_batch(wavy, x0):
    guidance = Energy(towards(torch.zeros(SHAPE)), 0.7)
    together = predict(wavy, x0, T, None, guidance)
    for n in range(len(x0)):
        torch.testing.assert_close(predict(wavy, x0[n : n + 1], T, None, guidance).eps[0], together.eps[n], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("through_unet", [True, False])
def test_no_graph_is_left_unless_the_caller_wants_one(x0, through_unet):
    trained, guidance = Wavy(), Energy(towards(torch.zeros(SHAPE)), 0.7, through_unet=through_unet)
    with torch.no_grad():
        pred = predict(trained, x0, T, None, guidance)
    assert not pred.x0.requires_grad and not pred.eps.requires_grad and trained.weight.grad is None

    class Talkative(Wavy):
        def forward(self, x, t, cond=None):
            pred = super().forward(x, t, cond)
            return Prediction(pred.x0, pred.eps, logvar=pred.eps, features={"map": pred.eps, "name": "a"})

    with torch.no_grad():
        pred = predict(Talkative(), x0, T, None, guidance)
    assert not pred.logvar.requires_grad and not pred.features["map"].requires_grad and pred.features["name"] == "a"
    frozen = Wavy().requires_grad_(False)
    x = x0[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: predict(frozen, x, T, None, guidance).eps.flatten()[:3], (x,))
    predict(trained, x0, T, None, guidance).eps.sum().backward()
    assert trained.weight.grad.abs().max() > 0


def test_inference_mode_is_refused_where_a_graph_is_needed(wavy, x0):
    with torch.inference_mode():
        predict(wavy, x0, T, None, Energy(towards(torch.zeros(SHAPE)), 0.7, through_unet=True, interval=(500, 900)))
        with pytest.raises(RuntimeError, match="no_grad"):
            predict(wavy, x0, T, None, Energy(towards(torch.zeros(SHAPE)), 0.7))


def test_energy_over_classifier_free_guidance_takes_one_call(wavy, x0):
    c, u = conditions()
    counted = Calls(wavy)
    inner = ClassifierFree(3.0, u)
    pred = predict(counted, x0, T, c, Energy(towards(torch.zeros(SHAPE)), 0.1, inner=inner))
    assert counted.batches == [6] and not torch.allclose(pred.eps, predict(wavy, x0, T, c, inner).eps)


# ------------------------------------------------------------------------------------------------- clip and nesting


def test_clip_moves_eps_along(wavy, x0):
    wild = 4 * x0
    plain, pred = wavy(wild, T), predict(wavy, wild, T, None, Clip())
    assert pred.x0.abs().max() <= 1 and (plain.x0.abs() > 1).any()
    a, s = wavy.schedule.coefficients(T, wild)
    torch.testing.assert_close(a * pred.x0 + s * pred.eps, wild, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pred.features["clipped"], (plain.x0.abs() > 1).flatten(1).float().mean(1))
    inside = predict(wavy, wild, T, None, Clip(bound=100.0))
    assert torch.equal(inside.x0, plain.x0) and torch.equal(inside.eps, plain.eps)


def test_clip_comes_after_the_energy():
    with pytest.raises(ValueError, match="Clip"):
        Energy(towards(0), 1.0, inner=Clip())


def test_clipping_branches_before_combining_them_is_another_thing(wavy, x0):
    """Easy wrong version: classifier-free guidance on clipped x0."""
    c, u = conditions()
    right = predict(wavy, 2 * x0, T, c, Clip(inner=ClassifierFree(7.5, u)))
    wrong = predict(Guided(wavy, Clip()), 2 * x0, T, c, ClassifierFree(7.5, u))
    assert right.x0.abs().max() <= 1 < wrong.x0.abs().max()


def test_moving_one_half_keeps_asymmetric_predictions_asymmetric():
    a, s, x = 0.6, 0.8, random((2, *SHAPE), 1)
    pred = Prediction(random((2, *SHAPE), 2), random((2, *SHAPE), 3))  # their x0 and eps are not those of one x
    d = 0.1 * x
    moved = with_x0(pred, pred.x0 + d, a, s)
    torch.testing.assert_close(a * moved.x0 + s * moved.eps, a * pred.x0 + s * pred.eps)
    back = with_eps(moved, pred.eps, a, s)
    torch.testing.assert_close(back.x0, pred.x0)
    assert (
        with_x0(pred, pred.x0 + d, 1.0, 0.0).eps.isfinite().all() and with_eps(pred, pred.eps + d, 0.0, 1.0).x0.isfinite().all()
    )


def test_plain_guidance_is_the_denoiser(wavy, x0):
    assert torch.equal(predict(wavy, x0, T, None, PLAIN).eps, wavy(x0, T).eps)
    guided = Guided(wavy, PLAIN)
    assert guided.schedule is wavy.schedule and guided.parameterization == "eps"


# ----------------------------------------------------------------------------------------------------------- lanes


def test_conditions_are_stacked_field_by_field():
    one = Condition(tokens=torch.ones(2, 4, 8), control={"pose": Condition(concat=torch.ones(1, 3, 2, 2))}, extra={"scale": 2.0})
    other = Condition(
        tokens=torch.zeros(1, 4, 8), control={"pose": Condition(concat=torch.zeros(2, 3, 2, 2))}, extra={"scale": 2.0}
    )
    both = stack([one, other], [2, 2])
    assert both.tokens.shape == (4, 4, 8) and both.tokens.mean((1, 2)).tolist() == [1, 1, 0, 0]
    assert both.control["pose"].concat.mean((1, 2, 3)).tolist() == [1, 1, 0, 0] and both.extra == {"scale": 2.0}
    rows = select(both, torch.tensor([0, 3]))
    assert rows.tokens.mean((1, 2)).tolist() == [1, 0] and rows.control["pose"].concat.shape[0] == 2
    assert stack([None, None], [2, 2]) is None and select(None, torch.tensor([0])) is None
    assert select(Condition(vector=torch.ones(1, 3)), torch.tensor([4])).vector.shape == (1, 3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (None, "give the unconditional one"),
        (Condition(vector=torch.zeros(1, 3)), "tokens"),
        (Condition(tokens=torch.zeros(1, 5, 8)), "shape of the condition's tokens"),
        (Condition(tokens=torch.zeros(1, 4, 8), extra={"scale": 1.0}), "extra"),
    ],
)
def test_conditions_that_cannot_share_a_batch_say_why(other, message):
    with pytest.raises(ValueError, match=message):
        stack([Condition(tokens=torch.ones(2, 4, 8)), other], [2, 1])


def test_what_comes_with_a_prediction_is_split_too():
    def network(x, t, cond=None):
        return Prediction(x, x, logvar=x + 1, features={"map": 2 * x, "name": "a"})

    one, other = evaluate(network, [(torch.ones(2, 1), 1.0, None), (torch.zeros(1, 1), 2.0, None)])
    assert one.logvar.tolist() == [[2], [2]] and other.features["map"].tolist() == [[0]] and other.features["name"] == "a"
