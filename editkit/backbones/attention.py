"""Cross-attention: what depends on the prompt alone is computed once per run, not at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from diffusers import ControlNetModel
from diffusers.models.attention_processor import Attention
from torch import nn

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
