"""Attention, quicker: what depends on the prompt alone is computed once per run; training on the CPU multiplies matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import PreTrainedModel

from editkit.backbones.attention_taps import attention_places, attention_taps
from editkit.engine.attention import Place
from editkit.engine.once import once, once_per_run


@contextmanager
def constant_text(network: nn.Module) -> Iterator[None]:
    """Project each prompt to keys and values once while the context is open, and embed each ControlNet hint once.

    The numbers are the same. It acts in every cross-attention of `network`, whatever attention processor is set, as long as
    that calls `to_k` and `to_v`; never while gradients are recorded. Prompts are told apart by tensor object, so one that
    is made anew at each step gains nothing. Change no weights meanwhile.

    Args:
        network: a backbone, or one with ControlNets around it.
    """
    with once_per_run(), ExitStack() as stack:
        for layer in _layers(network):
            stack.enter_context(_remembering(layer))
        yield


@contextmanager
def trained_on_cpu(network: nn.Module) -> Iterator[None]:
    """Let attention be two products of matrices while the context is open, where that trains faster.

    On the CPU the backward pass of torch's fused attention is slow: without it a training step of the toy latent model takes
    three quarters of the time. The numbers are the same up to rounding. Elsewhere, and where activation checkpointing saves
    the memory that this takes, nothing changes.

    Args:
        network: a UNet2DConditionModel or a ControlNetModel, or what holds some.
    """
    with ExitStack() as stack:
        for part in network.modules():
            if isinstance(part, (UNet2DConditionModel, ControlNetModel)) and _on_cpu(part) and not part.is_gradient_checkpointing:
                stack.enter_context(attention_taps(part, _products))
        yield


def prepare_on_cpu(model: PreTrainedModel) -> None:
    """Let a model of transformers that is on the CPU multiply attention's matrices too, from now on; call it in each step."""
    if model.device.type == "cpu" and model.config._attn_implementation != "eager":
        model.set_attn_implementation("eager")


def _on_cpu(part: nn.Module) -> bool:
    return any(attention.to_q.weight.device.type == "cpu" for attention in attention_places(part).values())


def _products(q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
    logits = (place.scale * q) @ k.transpose(-1, -2)
    return (logits if place.mask is None else logits + place.mask).softmax(-1) @ v


def _layers(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        if isinstance(module, Attention) and module.is_cross_attention and module.to_k is not None:
            yield from (module.to_k, module.to_v)
        elif isinstance(module, ControlNetModel):
            yield module.controlnet_cond_embedding


@contextmanager
def _remembering(layer: nn.Module) -> Iterator[None]:
    own, compute = layer.__dict__.get("forward"), layer.forward
    layer.forward = lambda tokens: once(layer, compute, tokens)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.forward  # the class's own is back
        if own is not None:
            layer.forward = own
