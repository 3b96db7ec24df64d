"""Translators begin as the identity and keep a picture's colours; a constant network passes gradients on."""

from __future__ import annotations

import torch
from torch import nn

from editkit.networks.constant import as_constant
from editkit.networks.translator import Translator


def test_a_translator_begins_as_the_identity_and_can_learn():
    torch.manual_seed(0)
    net, x = Translator(4, 1), torch.rand(2, 3, 16, 12) * 2 - 1
    assert torch.equal(net(x), x)
    net(x).square().sum().backward()
    assert net.change[-1].weight.grad.abs().max() > 0


def test_a_translator_sees_colours_and_contrast():
    """Instance norm all over, the usual layout, would make the same change to all of these."""
    torch.manual_seed(0)
    net, x = Translator(4, 2), torch.rand(1, 3, 16, 16) * 0.4
    nn.init.normal_(net.change[-1].weight)
    changes = [net(seen) - seen for seen in (x, x + 0.5, 2 * x)]
    assert all(not torch.allclose(changes[0], one, rtol=0.05) for one in changes[1:])


def test_a_constant_network_gives_its_inputs_a_gradient_and_its_weights_none():
    net, x = nn.Linear(3, 2), torch.randn(4, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(net(x).square().sum(), x)
    as_constant(net, x).square().sum().backward()
    assert torch.allclose(x.grad, plain) and net.weight.grad is None and net.bias.grad is None
    assert all(p.requires_grad for p in net.parameters())
