"""Attention taps: what they see, replace and leave behind, with diffusers' own attention as the reference."""

from __future__ import annotations

import pytest
import torch
from diffusers import ControlNetModel, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0

from editkit.backbones.attention import trained_on_cpu
from editkit.backbones.attention_taps import attention_places, attention_taps
from editkit.engine.attention import attend, attention_map
from editkit.engine.taps import recomputing
from editkit.errors import UsageError, UserError
from tests.engine.stand_ins import random, tiny_text_unet

T = 400


@pytest.fixture(scope="module")
def unet():
    return tiny_text_unet()


@pytest.fixture(scope="module")
def exact():
    """The same in float64, where rounding does not blur what is compared."""
    return tiny_text_unet().double()


def inputs(batch=2, size=(16, 16), tokens=5, dtype=torch.float32):
    return random((batch, 4, *size), 1, dtype), random((batch, tokens, 12), 2, dtype)


def nothing(q, k, v, place):
    return None


def processors(unet):
    return [module.processor for module in attention_places(unet).values()]


def test_places_have_names(unet):
    names = list(attention_places(unet))
    assert len(names) == len(set(names)) == 2 * (3 + 1 + 6)
    assert {"down.0.0.attn1", "down.2.0.attn2", "mid.0.attn1", "up.1.1.attn2"} < set(names)
    assert attention_places(unet)["up.1.1.attn2"] is unet.up_blocks[1].attentions[1].transformer_blocks[0].attn2
    deep = tiny_text_unet(transformer_layers_per_block=(1, 2, 1))
    assert attention_places(deep)["down.1.0.1.attn2"] is deep.down_blocks[1].attentions[0].transformer_blocks[1].attn2
    assert "down.0.0.attn2" in attention_places(deep) and "down.0.0.0.attn2" not in attention_places(deep)
    side = ControlNetModel.from_unet(unet, conditioning_channels=3)
    assert "down.0.0.attn2" in attention_places(side)


@pytest.mark.parametrize("changes", [{}, {"cross_attention_norm": "layer_norm"}, {"only_cross_attention": True}], ids=str)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_tap_that_returns_none_changes_nothing(changes, hidden):
    norm = changes.get("cross_attention_norm")
    unet = tiny_text_unet(**({} if norm else changes))
    if norm:
        for module in attention_places(unet).values():
            if module.is_cross_attention:
                module.norm_cross = torch.nn.LayerNorm(12).requires_grad_(False)
                module.norm_cross.weight.normal_()
    x, tokens = inputs()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool() if hidden else None
    plain = unet(x, T, tokens, encoder_attention_mask=mask).sample
    with attention_taps(unet, nothing):
        assert torch.equal(unet(x, T, tokens, encoder_attention_mask=mask).sample, plain)
    assert not hidden or not torch.allclose(unet(x, T, tokens).sample, plain, atol=1e-3), "the mask matters here"


def test_any_standard_processor_gives_the_same_attention(exact):
    x, tokens = inputs(dtype=torch.float64)
    plain = exact(x, T, tokens).sample
    old = tiny_text_unet().double()
    old.set_attn_processor(AttnProcessor())
    with attention_taps(old, nothing):
        torch.testing.assert_close(old(x, T, tokens).sample, plain, rtol=1e-9, atol=1e-9)
    assert all(isinstance(one, AttnProcessor) for one in processors(old))


@pytest.mark.parametrize("size", [(16, 16), (16, 8), (12, 20)])
def test_what_a_tap_is_told(unet, size):
    seen = {}
    x, tokens = inputs(3, size)
    with attention_taps(unet, lambda q, k, v, place: seen.__setitem__(place.name, (q, k, v, place))):
        unet(x, T, tokens)
    assert set(seen) == set(attention_places(unet))
    shrinks = {"down": (1, 2, 4), "mid": (4,), "up": (4, 2, 1)}
    for name, (q, k, v, place) in seen.items():
        part, number, *_ = name.split(".")
        shrink = shrinks[part][int(number)]
        assert place.size == (size[0] // shrink, size[1] // shrink) and q.shape[2] == place.size[0] * place.size[1]
        assert place.kind == ("self" if name.endswith("attn1") else "cross")
        keys = q.shape[2] if place.kind == "self" else 5
        assert q.shape[:2] == (3, 2) and k.shape == v.shape == (3, 2, keys, q.shape[3])
        assert place.scale == pytest.approx(q.shape[3] ** -0.5)


@pytest.mark.parametrize("hidden", [False, True])
def test_attention_written_out_is_the_normal_one(exact, hidden):
    x, tokens = inputs(dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool() if hidden else None
    plain = exact(x, T, tokens, encoder_attention_mask=mask).sample
    for own in (attend, lambda q, k, v, place: attention_map(q, k, place) @ v):
        with attention_taps(exact, own):
            torch.testing.assert_close(exact(x, T, tokens, encoder_attention_mask=mask).sample, plain, rtol=1e-9, atol=1e-9)

    def unmasked(q, k, v, place):
        return (place.scale * q @ k.transpose(-1, -2)).softmax(-1) @ v

    with attention_taps(exact, unmasked):
        assert torch.allclose(exact(x, T, tokens, encoder_attention_mask=mask).sample, plain, atol=1e-6) == (not hidden)


def test_a_tap_replaces_where_it_is_asked_to(unet):
    x, tokens = inputs()
    plain = unet(x, T, tokens).sample
    asked = []

    def blank(q, k, v, place):
        asked.append(place.name)
        return torch.zeros_like(q)

    with attention_taps(unet, blank, where="up.*.attn2"):
        assert not torch.allclose(unet(x, T, tokens).sample, plain, atol=1e-3)
    assert len(asked) == 6 and all(name.startswith("up.") and name.endswith("attn2") for name in asked)
    with attention_taps(unet, blank, where="*.attn2"):
        assert torch.equal(unet(x, T, tokens).sample, unet(x, T, 2 * tokens).sample), "no prompt gets through"
    assert torch.equal(unet(x, T, tokens).sample, plain)


def test_nested_taps_are_asked_from_the_inside_out_and_go_one_by_one(unet):
    x, tokens = inputs()
    before = processors(unet)
    order = []

    def outer(q, k, v, place):
        order.append("outer")
        return torch.zeros_like(q)

    def inner(q, k, v, place):
        order.append("inner")
        return torch.ones_like(q) if place.name == "mid.0.attn2" else None

    with attention_taps(unet, outer, where="mid.*"):
        between = processors(unet)
        with attention_taps(unet, inner, where="mid.*"):
            unet(x, T, tokens)
        assert processors(unet) == between
    assert order == ["inner", "outer", "inner"] and processors(unet) == before


def test_the_old_processors_come_back_after_an_exception(unet):
    before = processors(unet)
    x, tokens = inputs()

    def broken(q, k, v, place):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), attention_taps(unet, broken):
        unet(x, T, tokens)
    assert processors(unet) == before
    adapted = tiny_text_unet()
    first, *_, last = attention_places(adapted).values()
    last.set_processor(IPAdapterAttnProcessor2_0(8, 12))
    with pytest.raises(UserError, match="IPAdapterAttnProcessor2_0"), attention_taps(adapted, nothing):
        pass
    assert type(first.processor).__name__ == "AttnProcessor2_0"
    assert not any(block._forward_pre_hooks for block in adapted.modules())


def test_wrong_places_and_shapes_are_refused(unet):
    with (
        pytest.raises(UsageError, match=r"no attention matches 'down.9.*'.*down.0.0.attn1"),
        attention_taps(unet, nothing, "down.9.*"),
    ):
        pass
    with pytest.raises(UsageError, match="it has: none"), attention_taps(torch.nn.Linear(2, 2), nothing):
        pass
    assert (
        attention_places(UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)))
        == {}
    )
    x, tokens = inputs()
    with (
        pytest.raises(ValueError, match="mid.0.attn1 returned"),
        attention_taps(unet, lambda q, k, v, place: v[:1], "mid.*.attn1"),
    ):
        unet(x, T, tokens)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_flow_also_under_checkpointing(checkpointing):
    unet = tiny_text_unet().double()
    if checkpointing:
        unet.train().enable_gradient_checkpointing()
    x, tokens = inputs(dtype=torch.float64)
    x.requires_grad_()
    first, again = [], []

    def sharper(q, k, v, place):
        (again if recomputing() else first).append((place.name, place.size))
        return attend(2 * q, k, v, place)

    with attention_taps(unet, sharper):
        unet(x, T, tokens).sample.square().sum().backward()
    assert sorted(again) == (sorted(first) if checkpointing else []) and len(first) == 20
    reference = x.detach().clone().requires_grad_()
    doubled = tiny_text_unet().double()
    for module in attention_places(doubled).values():
        module.to_q.weight.mul_(2)
    doubled(reference, T, tokens).sample.square().sum().backward()
    torch.testing.assert_close(x.grad, reference.grad, rtol=1e-8, atol=1e-8)


def test_training_on_the_cpu_multiplies_matrices_to_the_same_gradients(monkeypatch):
    x, tokens = inputs(dtype=torch.float64)
    unet = tiny_text_unet().double().train()
    fused = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **names: fused.append(1) or real(*args, **names)
    )

    def gradients():
        fused.clear()
        given = x.clone().requires_grad_()
        unet(given, T, tokens).sample.square().sum().backward()
        return given.grad, len(fused)

    reference, count = gradients()
    assert count == 20
    with trained_on_cpu(unet):
        found, count = gradients()
    assert count == 0 and gradients()[1] == 20, "the context is over"
    torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-9)
    unet.enable_gradient_checkpointing()
    with trained_on_cpu(unet):
        assert gradients()[1] > 0, "whoever saves memory keeps the fused kernel"


def test_lanes_may_be_mixed(unet):
    """Row 1 under row 0's self-attention is what row 0's own queries and keys give with row 1's values."""
    x, tokens = inputs(3)
    plain = unet(x, T, tokens).sample

    def share(q, k, v, place):
        rows = torch.tensor([0, 0, 2])
        return attend(q[rows], k[rows], v, place)

    with attention_taps(unet, share, where="*.attn1"):
        mixed = unet(x, T, tokens).sample
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]]) and not torch.allclose(mixed[1], plain[1], atol=1e-3)
