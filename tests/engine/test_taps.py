"""Taps: seeing and replacing outputs, also under activation checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from editkit.engine.count import count_calls
from editkit.engine.taps import collected, recomputing, tap, taps
from editkit.types import Prediction


class Net(nn.Module):
    """Two layers, the first of which may be checkpointed; forward as a backbone's."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 4), reentrant

    def forward(self, x, t=0.0, cond=None):
        if self.reentrant is None:
            h = self.first(x).tanh()
        else:
            h = checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=self.reentrant)
        out = self.second(h)
        return Prediction(out, out)


class Whole(nn.Module):
    """A backbone whose whole network is checkpointed, so that backward calls its forward again."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = Net(), []

    def forward(self, x, t=0.0, cond=None):
        self.seen.append(recomputing())
        return self.net(x, t, cond)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_a_tap_sees_replaces_and_goes_away():
    net, seen = Net(), []
    plain = net(X).x0
    with tap(net.first, seen.append):
        assert torch.equal(net(X).x0, plain)
    with tap(net.first, lambda h: h + 1):
        assert not torch.equal(net(X).x0, plain)
    with pytest.raises(RuntimeError), tap(net.first, lambda h: h + 1):
        raise RuntimeError
    assert torch.equal(net(X).x0, plain) and len(seen) == 1 and torch.equal(seen[0], net.first(X))


def test_the_first_element_of_a_tuple_is_tapped():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "rest"

    pair = Pair()
    with tap(pair, lambda h: h + 1):
        out, rest = pair(X)
    assert torch.equal(out, X + 1) and rest == "rest"


def test_taps_by_name():
    net = Net()
    order = []
    with taps(net, {"first": lambda h: order.append("first"), "second": lambda h: order.append("second")}):
        net(X)
    assert order == ["first", "second"]
    with pytest.raises(ValueError, match="Did you mean 'second'"), taps(net, {"secnd": print}):
        pass


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing_outputs_are_collected_once_and_gradients_are_right(reentrant):
    def run(net):
        net.zero_grad()
        x = X.clone().requires_grad_()
        with taps(net, {"first": lambda h: 2 * h + 1}), collected(net, ["first", "second"]) as found:
            net(x).x0.square().sum().backward()
        return x.grad, net.first.weight.grad, [len(outputs) for outputs in found.values()]

    plain, checkpointed = run(Net()), run(Net(reentrant))
    assert checkpointed[2] == plain[2] == [1, 1]
    torch.testing.assert_close(checkpointed[:2], plain[:2])
    left = Net(reentrant)
    x = X.clone().requires_grad_()
    with taps(left, {"first": lambda h: 2 * h + 1}):
        loss = left(x).x0.square().sum()
    loss.backward()
    assert not torch.allclose(x.grad, plain[0])  # why backward belongs inside the context


@pytest.mark.parametrize("reentrant", [True, False])
def test_calls_are_counted_once_under_checkpointing(reentrant):
    backbone = Whole()
    with count_calls(backbone) as counter:
        x = X.clone().requires_grad_()
        checkpoint(lambda x: backbone(x).x0, x, use_reentrant=reentrant).sum().backward()
    assert backbone.seen == [False, True]
    assert (counter.calls, counter.encoder) == (1, 3) and counter.flops == 2 * (2 * 3 * 4 * 4)


def test_taps_reach_the_places_of_a_backbone(backbone, images):
    seen = []
    with torch.no_grad(), backbone.taps("bottleneck", lambda h: seen.append(tuple(h.shape))):
        backbone(images, 500.0)
    assert seen == [(3, *backbone.bottleneck_shape)]
