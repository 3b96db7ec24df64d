"""Seeing and replacing the attention inside a UNet in diffusers' layout, for as long as a context is open.

Only what an `Attention` module offers to any processor is used: its projections, its normalisations and `set_processor`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from editkit.engine.attention import AttentionTap, Place, attend
from editkit.errors import UsageError, UserError

_NAME = re.compile(
    r"((?:down_blocks|up_blocks|mid_block).*\.attentions\.\d+)\.transformer_blocks\.(?P<depth>\d+)\.(?P<kind>attn[12])"
)
Grids = dict[int, tuple[int, int]]

# All of them compute the same attention, which a tapped module computes too; any other one would be lost.
_STANDARD = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "_Tapped",
}


def attention_places(unet: nn.Module) -> dict[str, nn.Module]:
    """Return the attentions of a UNet2DConditionModel or ControlNetModel by place.

    "down.0.1.attn2" is the cross-attention (attn1: self-attention) of the second attention block of the first down block,
    "mid.0.attn1" one of the middle block's. An attention block of several transformer blocks has one number more, that
    of the transformer block: "down.2.0.5.attn1".
    """
    return {place: unet.get_submodule(path) for place, path in _paths(unet).items()}


@contextmanager
def attention_taps(unet: nn.Module, fn: AttentionTap, where: str = "*") -> Iterator[None]:
    """Ask `fn` at every attention of a UNet, before its normal computation, while the context is open.

    `fn(q, k, v, place)` gets what the module projected, (B, heads, tokens, d) each, and returns the output of the same
    shape as q, from which the module's own output layers go on; None stands for scaled dot product attention. Of nested
    taps the inner one is asked first, the outer one if it returns None. Under activation checkpointing `fn` is asked
    again during backward, which therefore belongs inside the context (see `editkit.engine.taps.recomputing`).

    Args:
        unet: the network.
        fn: the tap.
        where: shell pattern of places, such as "*.attn2" or "up.*.attn1".

    Raises:
        UsageError: no such place.
        UserError: a module whose processor is more than attention (an IP adapter, for example).
        ValueError: during a call, a tap that returned another shape than that of q.
    """
    paths = _paths(unet)
    chosen = [place for place in paths if fnmatchcase(place, where)]
    if not chosen:
        has = ", ".join(paths) or "none"
        raise UsageError(f"no attention matches {where!r} in this {type(unet).__name__}; it has: {has}")
    with ExitStack() as stack:
        grids: dict[str, Grids] = {}
        for place in chosen:
            module, block = unet.get_submodule(paths[place]), paths[place].partition(".transformer_blocks.")[0]
            if block not in grids:
                grids[block] = stack.enter_context(_seen_grids(unet.get_submodule(block)))
            previous = module.processor
            if type(previous).__name__ not in _STANDARD:
                raise UserError(
                    f"the attention {place} runs through {type(previous).__name__}, which attention control would replace: "
                    "take adapters off first, or call set_default_attn_processor() on the network"
                )
            stack.callback(module.set_processor, previous)
            module.set_processor(_Tapped(fn, previous, place, grids[block]))
        yield


class _Tapped:
    """An attention processor that asks its taps first, the innermost one before the others."""

    def __init__(self, fn: AttentionTap, previous: Any, name: str, grids: Grids) -> None:
        self.fns = (fn, *(previous.fns if isinstance(previous, _Tapped) else ()))
        self.name, self.grids = name, grids

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        q, k, v = _projected(attn, hidden_states, encoder_hidden_states)
        kind = "self" if encoder_hidden_states is None else "cross"
        scale = 1 / math.sqrt(q.shape[-1]) if attn.scale_qk else attn.scale  # the former as torch computes it, to the last bit
        place = Place(self.name, kind, self.grids[q.shape[2]], scale, _per_head(attention_mask))
        output = next((out for fn in self.fns if (out := fn(q, k, v, place)) is not None), None)
        if output is None:
            output = attend(q, k, v, place)
        elif output.shape != q.shape:
            raise ValueError(f"the tap at {self.name} returned {tuple(output.shape)}, not the shape of q, {tuple(q.shape)}")
        joined = output.transpose(1, 2).flatten(2).to(q.dtype)
        project, dropout = attn.to_out
        return dropout(project(joined))


def _projected(attn: Any, hidden: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v, (B, heads, tokens, d) each."""
    if context is None:
        context = hidden
    elif attn.norm_cross is not None:
        context = attn.norm_encoder_hidden_states(context)
    q, k, v = (
        layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for layer, tokens in ((attn.to_q, hidden), (attn.to_k, context), (attn.to_v, context))
    )
    return (q if attn.norm_q is None else attn.norm_q(q)), (k if attn.norm_k is None else attn.norm_k(k)), v


def _per_head(bias: Tensor | None) -> Tensor | None:
    """Return an attention bias (B, keys) or (B, 1 or queries, keys) with an axis for the heads."""
    if bias is None:
        return None
    return bias[:, None, None] if bias.ndim == 2 else bias[:, None]


@contextmanager
def _seen_grids(block: nn.Module) -> Iterator[Grids]:
    """Note the grids that an attention block receives, by their number of tokens."""
    grids: Grids = {}

    def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        height, width = (args[0] if args else kwargs["hidden_states"]).shape[-2:]
        grids[height * width] = (height, width)

    with block.register_forward_pre_hook(note, with_kwargs=True):
        yield grids


def _paths(unet: nn.Module) -> dict[str, str]:
    """Return the dotted name of every attention in the network by place."""
    found = [match for name, _ in unet.named_modules() if (match := _NAME.fullmatch(name))]
    deep = {match[1] for match in found if int(match["depth"])}
    names = {match[0]: _short(match[1]) + (f".{match['depth']}" if match[1] in deep else "") for match in found}
    return {f"{names[match[0]]}.{match['kind']}": match[0] for match in found}


def _short(block: str) -> str:
    return re.sub(r"_blocks?|\.attentions", "", block)
