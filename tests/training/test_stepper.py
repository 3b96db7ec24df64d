"""Updates become optimiser steps: accumulated, clipped, checked, scheduled, averaged and counted."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from editkit.errors import UserError
from editkit.training.ema import Ema
from editkit.training.method import Method, Update
from editkit.training.stepper import Meter, NotFinite
from tests.training.toys import Copy, new, start

SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Line(Method):
    """y = w x, loss (w x)^2 per sample, so that gradients are known: 2 w mean(x^2)."""

    def __init__(self, **factories):
        super().__init__(**{"optimizer": SGD, **factories})
        self.part = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.part.weight)

    def trainable(self):
        return {"line": self.part.parameters()}

    def loss(self, batch):
        return {"square": self.part(batch["image"]).square().squeeze(1)}


def batch(*values):
    return {"image": torch.tensor(values).view(-1, 1)}


def test_one_step_is_plain_gradient_descent():
    method = Line()
    stepper = start(method, batch_size=2)
    stepper.run(batch(1.0, 2.0))
    assert method.part.weight.item() == pytest.approx(1 - 0.1 * 2 * 2.5)
    assert (stepper.steps, stepper.images) == (1, 2)


class Twice(Line):
    """Two updates a batch."""

    def updates(self, batch):
        for _ in range(2):
            yield Update("line", self.loss(batch))


@pytest.mark.parametrize("cleared", [True, False], ids=["ours", "stale"])
def test_under_autocast_an_update_sees_the_weights_that_the_last_one_left(cleared, monkeypatch):
    """An easy wrong version leaves autocast's copies of the weights, so that all updates of a batch see those of the first."""
    if not cleared:
        monkeypatch.setattr(torch, "clear_autocast_cache", lambda: None)
    method = Twice()
    with torch.autocast("cpu", torch.bfloat16):
        start(method, batch_size=1).run(batch(1.0))
    assert (method.part.weight.item() == pytest.approx(0.8 * 0.8, abs=0.01)) == cleared


def test_accumulating_two_batches_is_one_batch_of_both():
    method = Line()
    stepper = start(method, batch_size=1, accumulate=2)
    stepper.run(batch(1.0))
    assert method.part.weight.item() == 1.0 and not stepper.settled and stepper.steps == 0
    with pytest.raises(RuntimeError, match="waiting"):
        stepper.state_dict()
    stepper.run(batch(2.0))
    assert method.part.weight.item() == pytest.approx(1 - 0.1 * 2 * 2.5)
    assert stepper.settled and stepper.steps == 1 and stepper.images == 2


def test_accumulation_exchanges_gradients_only_with_the_last_batch():
    import contextlib

    method, unsynced = Line(), []
    stepper = start(method, batch_size=1, accumulate=3)
    stepper.unsynced = lambda: unsynced.append(1) or contextlib.nullcontext()
    for _ in range(6):
        stepper.run(batch(1.0))
    assert len(unsynced) == 4


def test_clipping_bounds_the_step_and_keeps_small_gradients():
    for value, expected in ((10.0, 1 - 0.1 * 0.5), (0.1, 1 - 0.1 * 2 * 0.01)):
        method = Line()
        start(method, batch_size=1, clip_norm=0.5).run(batch(value))
        assert method.part.weight.item() == pytest.approx(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(bad):
    method = Line(optimizer=functools.partial(torch.optim.Adam, lr=0.1))
    stepper = start(method, batch_size=1, ema=0.9, clip_norm=1.0)
    stepper.run(batch(1.0))
    before, average = method.part.weight.clone(), stepper.ema.averages["line"]["part.weight"].clone()
    with pytest.raises(NotFinite, match=r"'line' is not finite at step 2 \(losses square=(nan|inf)\).*photo\.png"):
        stepper.run({**batch(bad), "key": ["photo.png"]})
    assert torch.equal(method.part.weight, before) and torch.equal(stepper.ema.averages["line"]["part.weight"], average)
    assert stepper.steps == 1


def test_the_generator_resumes_with_stepped_weights():
    seen = []

    class Several(Line):
        def updates(self, batch):
            for _ in range(3):
                seen.append(self.part.weight.item())
                yield Update("line", self.loss(batch))
            seen.append(self.part.weight.item())

    stepper = start(Several(), batch_size=1)
    stepper.run(batch(1.0))
    assert seen == pytest.approx([1, 0.8, 0.64, 0.512])
    assert stepper.steps == 3 and stepper.images == 1


def test_groups_have_their_own_optimisers_and_are_stepped_alone():
    class Two(Method):
        def __init__(self):
            super().__init__(optimizer=SGD)
            self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

        def trainable(self):
            return {"a": self.a.parameters(), "b": self.b.parameters()}

        def updates(self, batch):
            yield Update("a", {"one": self.a(batch["image"]).square(), "weighted": 2 * self.a(batch["image"]).abs().mean()})
            held.append(self.b.weight.item())
            yield Update("b", {"two": self.b(self.a(batch["image"]).detach()).square()})

    torch.manual_seed(0)
    method, held = Two(), []
    before = method.b.weight.item()
    stepper = start(method, batch_size=1)
    stepper.run(batch(1.0))
    assert held == [before] and method.b.weight.item() != before and stepper.steps == 2
    assert set(stepper.meter.take()) >= {"loss", "loss/one", "loss/weighted", "loss/two", "grad_norm/a", "lr/b"}


def test_the_schedule_advances_with_optimiser_steps_not_batches():
    factory = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)
    stepper = start(Line(scheduler=factory), batch_size=1, accumulate=2)
    for _ in range(8):
        stepper.run(batch(0.1))
    assert stepper.optimizers["line"].param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)


def test_a_warm_up_that_does_not_fit_is_one_line():
    short = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20, pct_start=0.05)
    with pytest.raises(UserError, match=r"does not fit into 20 steps.*method\.scheduler\.pct_start"):
        start(Line(optimizer=functools.partial(torch.optim.Adam, lr=0.1), scheduler=short), steps=20)


def test_losses_without_gradient_are_reported_as_such():
    class Cut(Line):
        def loss(self, batch):
            return {"square": self.part(batch["image"]).detach().requires_grad_().square()}

    with pytest.raises(ValueError, match="no gradient reached the group 'line'"):
        start(Cut(), batch_size=1).run(batch(1.0))


def test_length_in_images_ends_with_the_last_batch():
    stepper = start(Line(), images=5, batch_size=2)
    while not stepper.done:
        stepper.run(batch(0.1, 0.2))
    assert (stepper.images, stepper.steps) == (6, 3)


def test_ema_decay_warms_up():
    weight = nn.Parameter(torch.zeros(1))
    ema = Ema({"g": {"w": weight}}, 0.9)
    expected = 0.0
    for n in range(1, 60):
        weight.data.fill_(float(n))
        ema.update("g", images=n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.averages["g"]["w"].item() == pytest.approx(expected, rel=1e-5)


def test_an_average_kept_elsewhere_is_the_same_average():
    """Where no second device is, one without data shows that every tensor of the average goes there."""
    weight = nn.Parameter(torch.ones(2))
    assert Ema({"g": {"w": weight}}, 0.9, "meta").averages["g"]["w"].device.type == "meta"
    elsewhere, beside = Ema({"g": {"w": weight}}, 0.9, "cpu"), Ema({"g": {"w": weight}}, 0.9)
    weight.data.fill_(5.0)
    for ema in (elsewhere, beside):
        ema.update("g", images=1)
    assert torch.equal(elsewhere.averages["g"]["w"], beside.averages["g"]["w"])
    assert elsewhere.averages["g"]["w"].data_ptr() != weight.data_ptr() and not elsewhere.averages["g"]["w"].requires_grad


def test_ema_half_life_in_images_does_not_depend_on_the_batch_size():
    def average(batch_size):
        weight = nn.Parameter(torch.zeros(1))
        ema = Ema({"g": {"w": weight}}, 100.0)
        for images in range(batch_size, 4001, batch_size):
            weight.data.fill_(1.0 if images > 3800 else 0.0)
            ema.update("g", images=images)
        return ema.averages["g"]["w"].item()

    assert average(2) == pytest.approx(0.75, abs=0.01)  # two half-lives at 1
    assert average(8) == pytest.approx(average(2), abs=0.02)


def test_averaged_weights_are_put_on_and_taken_off_even_on_errors():
    method = new()
    stepper = start(method, batch_size=2, ema=0.9)
    stepper.run(method.dummy_batch())
    stepper.run(method.dummy_batch())
    own = {name: p.detach().clone() for name, p in method.named_parameters()}
    with pytest.raises(KeyError), method.averaged_weights():
        assert torch.equal(method.net[0].weight, stepper.ema.averages["net"]["net.0.weight"])
        assert not torch.equal(method.net[0].weight, own["net.0.weight"])
        raise KeyError
    assert all(torch.equal(p, own[name]) for name, p in method.named_parameters())


def test_a_state_put_into_another_stepper_continues_alike():
    def finish(method, stepper):
        for _ in range(3):
            torch.manual_seed(5)
            stepper.run(method.dummy_batch())
        return method.net[0].weight.detach().clone(), stepper.ema.averages["net"]["net.0.weight"].clone()

    schedule = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)
    first = new(scheduler=schedule)
    stepper = start(first, batch_size=2, ema=0.9)
    for _ in range(4):
        stepper.run(first.dummy_batch())
    weights = {name: tensor.clone() for name, tensor in first.trained_state().items()}
    import copy

    state = copy.deepcopy(stepper.state_dict())
    second = Copy(scheduler=schedule)
    second.frozen.load_state_dict(first.frozen.state_dict())
    second.load_trained(weights)
    other = start(second, batch_size=2, ema=0.9)
    other.load_state_dict(state)
    for one, two in zip(finish(first, stepper), finish(second, other), strict=True):
        assert torch.equal(one, two)


def test_meter_means_per_sample_and_scalar_values():
    meter = Meter()
    meter.add({"a": torch.tensor([1.0, 3.0]), "lr": 0.5})
    meter.add({"a": torch.tensor(4.0)})
    assert meter.take() == {"a": 3.0, "lr": 0.5} and meter.take() == {}


def rates(factor_of, scheduler, steps=6, **plan):
    """Return the learning rates of the first steps."""
    method = Copy(scheduler=scheduler)
    stepper = start(method, steps=steps, **plan)
    seen = []
    for _ in range(steps):
        seen.append(stepper.optimizers["net"].param_groups[0]["lr"] / factor_of)
        for _ in range(plan.get("accumulate", 1)):
            stepper.run(method.dummy_batch())
    return seen


SCHEDULES = {
    "none": None,
    "one cycle": functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=12, pct_start=0.3),
    "cosine": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=6),
    "growing": functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.2**step),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 2.0), ("linear", 4.0)])
def test_rates_grow_with_the_images_of_a_step_under_every_schedule(name, rule, factor):
    own = rates(1.0, SCHEDULES[name], batch_size=2)
    grown = rates(factor, SCHEDULES[name], batch_size=4, accumulate=2, lr_batch=2, lr_rule=rule)
    assert grown == pytest.approx(own) and own[0] > 0


def test_rates_stay_as_they_are_unless_a_batch_is_named_for_them():
    assert rates(1.0, SCHEDULES["cosine"], batch_size=64) == rates(1.0, SCHEDULES["cosine"], batch_size=2)
