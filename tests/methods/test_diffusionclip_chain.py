"""DiffusionCLIP's two ways to train: their invariants, and easy wrong versions that break them."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch

from editkit.engine.count import count_calls
from editkit.engine.sample import sample
from editkit.losses.identity import Identity
from editkit.training import chain
from editkit.training.chain import Recomputed, stepwise, unrolled
from editkit.types import Prediction
from tests.methods.asyrp_parts import Images, ready
from tests.methods.diffusionclip_parts import T0, TinyIdentity, convolutions, per_call, tiny_method

CALLS = 6


def first_update(method, data, rows=(0, 1)):
    return next(iter(method.updates(data.batch(list(rows)))))


def test_with_a_rate_of_0_what_is_trained_on_is_the_short_reconstruction():
    method, data = ready(tiny_method(optimizer=partial(torch.optim.SGD, lr=0.0))), Images(4)
    method.stepper.run(data.batch([0, 1]))
    x = method.compute_sources(data.images[:2])["x"]
    with torch.no_grad():
        plain = sample(method.backbone, x, method.levels)
        expected = (plain - data.images[:2]).abs().mean((1, 2, 3))
    assert torch.allclose(first_update(method, data).losses["l1"], expected, atol=1e-5)
    assert len(method.levels) - 1 == CALLS and method.levels.times[-1] == T0


def test_unrolled_training_goes_through_all_calls():
    method, data = ready(tiny_method()), Images(4)
    assert convolutions(first_update(method, data).losses["l1"].sum()) == CALLS * per_call(method.network())


@pytest.mark.parametrize("wrong", ["last call", "one step"])
def test_shorter_gradients_are_noticed(wrong, monkeypatch):
    """Easy wrong versions: differentiating the last call alone, or the one-step estimate (another method)."""

    def last_call(network, levels, x, criterion):
        with torch.no_grad():
            x = sample(network, x, levels, stop=1)
        yield criterion(sample(network, x, levels, start=1))

    def one_step(network, levels, x, criterion):
        yield criterion(network(x, levels.times[-1]).x0)

    monkeypatch.setitem(chain.CHAINS, "unrolled", {"last call": last_call, "one step": one_step}[wrong])
    method, data = ready(tiny_method()), Images(4)
    assert (
        convolutions(first_update(method, data).losses["l1"].sum())
        == per_call(method.network())
        < CALLS * per_call(method.network())
    )


def test_the_loss_depends_on_the_first_call():
    method, data = ready(tiny_method()), Images(2)
    x = method.compute_sources(data.images)["x"]

    class Nudged:
        schedule, parameterization = method.backbone.schedule, "v"

        def __call__(self, x, t, cond=None):
            pred = method.backbone(x, t)
            return Prediction(pred.x0, pred.eps + 0.1) if t == T0 else pred

    def end(network):
        with torch.no_grad():
            return next(iter(unrolled(network, method.levels, x, lambda x: x)))

    assert not torch.allclose(end(Nudged()), end(method.backbone), atol=1e-3)


def test_every_parameter_of_the_copy_learns_and_nothing_else_does():
    method, data = ready(tiny_method()), Images(2)
    first_update(method, data).total().backward()
    for name, parameter in method.network().named_parameters():
        if not name.endswith("to_k.bias"):  # softmax does not see it
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    others = [p for n, p in method.named_parameters() if not n.startswith("tuned.")]
    assert others and all(p.grad is None and not p.requires_grad for p in others)


def test_stepwise_training_steps_after_each_call_with_the_graph_of_one():
    method, data = ready(tiny_method(training="stepwise")), Images(2)
    counts = [convolutions(update.total()) for update in method.updates(data.batch([0, 1]))]
    # the identity network of this test has none, nor has its CLIP
    assert counts == [per_call(method.network())] * CALLS
    method.stepper.run(data.batch([0, 1]))
    assert method.stepper.steps == CALLS


def test_a_stepwise_state_is_what_the_network_said_before_its_update():
    method, data = ready(tiny_method(training="stepwise")), Images(2)
    x = method.compute_sources(data.images)["x"]
    network, seen = method.network(), []

    class Spy:
        def __call__(self, x, t, cond=None):
            seen.append(x.clone())
            return network(x, t)

    chain = stepwise(Spy(), method.levels, x, lambda x0: x0)
    next(chain)
    with torch.no_grad():
        expected = sample(method.backbone, x, method.levels, stop=CALLS - 1)
        for parameter in network.parameters():
            parameter.add_(0.1)
    next(chain)
    assert torch.allclose(seen[1], expected, atol=1e-5)


def test_the_identity_term_has_a_gradient_in_stepwise_training():
    """The released code's version, which measures it on the detached next state, has none."""
    method, data = ready(tiny_method(training="stepwise", clip_weight=0.0, l1_weight=0.0, identity_weight=1.0)), Images(2)
    update = first_update(method, data)
    gradients = torch.autograd.grad(update.losses["identity"].sum(), list(method.network().parameters()), allow_unused=True)
    assert any(g is not None and g.abs().max() > 0 for g in gradients)
    identity = Identity(TinyIdentity().requires_grad_(False))
    following = []

    def official(network, levels, x, criterion):
        pred = network(x, levels.times[-1])
        following.append((levels.signal(5) * pred.x0 + levels.noise(5) * pred.eps).detach())
        yield criterion(pred.x0)

    x = method.compute_sources(data.images)["x"]
    next(official(method.network(), method.levels, x, lambda x0: x0))
    assert not identity(following[0], identity.features(data.images)).requires_grad


@pytest.mark.parametrize("training", ["unrolled", "stepwise"])
@pytest.mark.parametrize("precision", [32, "bf16"])
def test_checkpointing_changes_no_gradient_and_no_count(training, precision):
    gradients, data = [], Images(2)
    for checkpointing in (False, True):
        method = ready(tiny_method(training=training, checkpointing=checkpointing))
        context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        with context, count_calls(method.network(), flops=False) as counter:
            for update in method.updates(data.batch([0, 1])):
                update.total().backward()
        assert counter.calls == CALLS
        gradients.append([p.grad for p in method.network().parameters()])
    limit = 1e-5 if precision == 32 else 2e-2
    for kept, recomputed in zip(*gradients, strict=True):
        assert (kept - recomputed).abs().max() <= limit * max(1.0, float(kept.abs().max()))


def test_recomputed_calls_keep_no_activations():
    method, data = ready(tiny_method()), Images(2)
    x = method.compute_sources(data.images)["x"]

    def kept(network):
        held = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
            sample(network, x, method.levels)
        return sum(held)

    sizes = [kept(network) for network in (method.network(), Recomputed(method.network()))]
    assert sizes[1] < sizes[0] / 10


@pytest.mark.parametrize("training", ["unrolled", "stepwise"])
def test_training_lowers_the_clip_loss(training):
    method, data = ready(tiny_method(training=training, optimizer=partial(torch.optim.Adam, lr=3e-3))), Images(2)
    method.precompute(data)
    means = []
    for _ in range(6):
        method.stepper.run(data.batch([0, 1]))
        means.append(method.stepper.meter.take()["loss/clip"])
    assert means[-1] < means[0]
