"""ControlNets around the latent backbone, and what is computed once per run."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from editkit.backbones.attention import constant_text
from editkit.backbones.controlnet import Controlled, hint, load_controlnet, without_control
from editkit.engine.guidance import ClassifierFree
from editkit.engine.lanes import evaluate
from editkit.engine.sample import sample
from editkit.errors import UsageError, UserError
from editkit.types import Condition
from tests.backbones import tiny_latent as tiny

T = 300.0


@pytest.fixture
def controlled():
    return Controlled(tiny.backbone(), {"edges": tiny.controlnet()})


@torch.no_grad()
def condition(controlled, text="a smiling face", own=None, **arguments) -> Condition:
    """Return a prompt, and a hint with a prompt of its own if there is one."""
    backbone = controlled.backbone
    tokens = None if own is None else backbone.tokens([own])
    return Condition(backbone.tokens([text]), control={"edges": hint(tiny.images() / 2 + 0.5, tokens, **arguments)})


@torch.no_grad()
def test_the_net_may_read_another_prompt_than_the_unet(controlled):
    """The easy wrong version, one prompt for both, is what stock pipelines do; CycleNet needs two."""
    x = tiny.noise()
    same, other = (controlled(x, T, condition(controlled, own=own)).eps for own in ("a smiling face", "an old face"))
    assert torch.equal(same, controlled(x, T, condition(controlled)).eps)
    assert not torch.allclose(same, other, atol=1e-4)
    tokens = controlled.backbone.tokens(["an old face"])
    down, mid = controlled.nets["edges"](
        x, T, tokens, controlnet_cond=tiny.images() / 2 + 0.5, return_dict=False, conditioning_scale=1.0
    )
    unet_tokens = controlled.backbone.tokens(["a smiling face"])
    expected = controlled.backbone.unet(
        x, T, unet_tokens, down_block_additional_residuals=down, mid_block_additional_residual=mid
    ).sample
    assert torch.equal(other, expected)


@torch.no_grad()
def test_zero_convolutions_scale_zero_and_inactive_hints_are_the_bare_backbone(controlled):
    x, cond = tiny.noise(), condition(controlled)
    bare = controlled.backbone(x, T, cond).eps
    assert not torch.allclose(controlled(x, T, cond).eps, bare, atol=1e-3)
    assert torch.equal(controlled(x, T, without_control(cond)).eps, bare)
    assert torch.equal(Controlled(controlled.backbone, dict(controlled.nets), {"edges": 0.0})(x, T, cond).eps, bare)
    for layer in (*controlled.nets["edges"].controlnet_down_blocks, controlled.nets["edges"].controlnet_mid_block):
        torch.nn.init.zeros_(layer.weight)
    assert torch.equal(controlled(x, T, cond).eps, bare)


@torch.no_grad()
def test_an_inactive_lane_is_not_controlled_and_costs_nothing(controlled):
    x, cond = tiny.noise(2), condition(controlled)
    sizes = []
    with controlled.nets["edges"].conv_in.register_forward_hook(lambda module, args, out: sizes.append(len(out))) as hook:
        on, off = evaluate(controlled, [(x, torch.tensor([10.0, 300.0]), cond), (x, T, without_control(cond))])
    del hook
    assert sizes == [2]
    assert torch.allclose(on.eps, controlled(x, torch.tensor([10.0, 300.0]), cond).eps, atol=1e-5)
    assert torch.allclose(off.eps, controlled.backbone(x, T, cond).eps, atol=1e-5)


def test_gradients_reach_the_net_that_is_trained(controlled):
    cond = condition(controlled)
    with constant_text(controlled):
        controlled(tiny.noise(), T, cond).eps.square().mean().backward()
    net = controlled.nets["edges"]
    assert net.controlnet_cond_embedding.conv_in.weight.grad.abs().max() > 0
    assert net.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in controlled.backbone.parameters())


def test_missing_hints_and_unknown_nets_are_named(controlled):
    with pytest.raises(UsageError, match="ControlNet 'edges' has no hint"):
        controlled(tiny.noise(), T, Condition(tokens=condition(controlled).tokens))
    with pytest.raises(UsageError, match="no ControlNet depth to scale: there are edges"):
        Controlled(controlled.backbone, {"edges": tiny.controlnet()}, {"depth": 1.0})


def test_reads_a_folder(tmp_path):
    tiny.controlnet().save_pretrained(tmp_path)
    net = load_controlnet(tmp_path)
    assert torch.equal(net.conv_in.weight, tiny.controlnet().conv_in.weight)
    assert not any(weight.requires_grad for weight in net.parameters())
    with pytest.raises(UserError, match="does not hold a ControlNetModel"):
        load_controlnet(tiny.folder(tmp_path / "pipeline"))


@contextmanager
def counted(monkeypatch, network, *names):
    """Count the matrix products and convolutions with the weights of the layers that end in one of the names."""
    layers = {id(layer.weight) for name, layer in network.named_modules() if name.endswith(names)}
    calls = []
    with monkeypatch.context() as patch:
        for kind in (torch.nn.Linear, torch.nn.Conv2d):
            plain = kind.forward

            def forward(layer, x, plain=plain):
                calls.extend([1] * (id(layer.weight) in layers))
                return plain(layer, x)

            patch.setattr(kind, "forward", forward)
        yield calls


TEXT = ("attn2.to_k", "attn2.to_v", "controlnet_cond_embedding.conv_in")


def run(controlled, batch=1, steps=5) -> torch.Tensor:
    """Sample under guidance, whose branches are joined at every step."""
    backbone = controlled.backbone
    cond, empty = condition(controlled), condition(controlled, "")
    levels = backbone.schedule.levels(steps, spacing="leading", offset=1)
    return sample(controlled, tiny.noise(batch), levels, cond, guidance=ClassifierFree(7.5, empty))


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_prompts_and_hints_are_projected_once_per_run(controlled, monkeypatch, batch):
    steps = 5
    with counted(monkeypatch, controlled, *TEXT) as plain:
        expected = run(controlled, batch, steps)
    with counted(monkeypatch, controlled, *TEXT) as saved, constant_text(controlled):
        with constant_text(controlled.backbone):
            pass  # one inside another changes nothing
        assert torch.equal(run(controlled, batch, steps), expected)
    assert len(saved) > 0 and len(plain) == steps * len(saved)
    with counted(monkeypatch, controlled, *TEXT) as after:
        run(controlled, batch, steps)
    assert len(after) == len(plain), "the context has closed"


@torch.no_grad()
def test_a_single_lane_in_half_precision_is_projected_once_too(monkeypatch):
    backbone = tiny.backbone().to(torch.bfloat16)
    cond = Condition(tokens=backbone.tokens(["a smiling face"]))
    with counted(monkeypatch, backbone, *TEXT) as calls, constant_text(backbone):
        results = [backbone(tiny.noise(2), t, cond).eps for t in (900.0, 500.0, 100.0)]
    layers = sum(name.endswith(TEXT) for name, _ in backbone.named_modules())
    assert len(calls) == layers
    assert torch.equal(results[1], backbone(tiny.noise(2), 500.0, cond).eps)


@torch.no_grad()
def test_other_prompts_and_prompts_changed_in_place_are_not_mistaken(controlled):
    """Easy wrong versions remember by layer alone, or by an address that a later prompt takes over."""
    backbone, x = controlled.backbone, tiny.noise()
    texts = [f"{word} face" for word in ("a smiling", "an old", "an angry", "a bald", "a young", "a sad")] * 2
    expected = [backbone(x, T, Condition(tokens=backbone.tokens([text]))).eps for text in texts]
    with constant_text(backbone):
        for text, eps in zip(texts, expected, strict=True):
            assert torch.equal(backbone(x, T, Condition(tokens=backbone.tokens([text]))).eps, eps)
        tokens = backbone.tokens([texts[0]])
        assert torch.equal(backbone(x, T, Condition(tokens=tokens)).eps, expected[0])
        tokens.copy_(backbone.tokens([texts[1]]))
        assert torch.equal(backbone(x, T, Condition(tokens=tokens)).eps, expected[1])


def test_nothing_is_remembered_while_gradients_are_recorded(controlled, monkeypatch):
    backbone, x = controlled.backbone, tiny.noise()
    tokens = condition(controlled).tokens.clone().requires_grad_()
    with counted(monkeypatch, backbone, *TEXT) as calls, constant_text(backbone):
        with torch.no_grad():
            backbone(x, T, Condition(tokens=tokens))
        once = len(calls)
        for _ in range(2):
            tokens.grad = None
            backbone(x, T, Condition(tokens=tokens)).eps.square().sum().backward()
            assert tokens.grad.abs().max() > 0
    assert once > 0 and len(calls) == 3 * once


@torch.inference_mode()
def test_inference_mode_works(controlled):
    expected = run(controlled)
    with constant_text(controlled):
        assert torch.equal(run(controlled), expected)
