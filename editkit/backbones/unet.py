"""What the UNets of diffusers have in common, with or without cross-attention: times, places, halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone, Finish
from editkit.errors import UserError
from editkit.types import Condition, Prediction

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UNetBackbone(Backbone):
    """A backbone around `unet`, a UNet2DModel or UNet2DConditionModel; a subclass says what goes into it.

    Attributes:
        unet: the network.
    """

    unet: Any

    @property
    def bottleneck_shape(self) -> tuple[int, int, int]:
        """Return (C, h, w) of the middle block's output."""
        _, height, width = self.sample_shape
        shrink = 2 ** sum(block.downsamplers is not None for block in self.unet.down_blocks)
        return self.unet.config.block_out_channels[-1], height // shrink, width // shrink

    @property
    def time_width(self) -> int:
        """Return the width of the time embedding after its two layers."""
        return self.unet.time_embedding.linear_2.out_features

    def time_embedding(self, t: float | Tensor) -> Tensor:
        """Return the network's own embedding of the time, (B, time_width)."""
        times = self.times_of(t, 1) if not isinstance(t, Tensor) or t.ndim == 0 else t
        return self.unet.time_embedding(self.unet.time_proj(times).to(self.unet.dtype))

    def halves(self, x: Tensor, t: float | Tensor, cond: Condition | None = None) -> tuple[Tensor, Finish]:
        """Run the encoder and the middle block; `finish` runs the decoder for a list of h in one batch."""
        unet, context = self.unet, self._context(cond, len(x))
        emb = self._embedding(t, cond, len(x))
        hidden = self._input(x, cond)
        hidden = unet.conv_in(2 * hidden - 1 if unet.config.center_input_sample else hidden)
        skips = (hidden,)
        for block in unet.down_blocks:
            hidden, more = block(hidden_states=hidden, temb=emb, **_attended(block, context))
            skips += more
        h = unet.mid_block(hidden, emb, **_attended(unet.mid_block, context))

        def finish(hs: Sequence[Tensor]) -> list[Prediction]:
            n = len(hs)
            output = self._decode_half(
                torch.cat([one.to(unet.dtype) for one in hs]),
                [_repeat(skip, n) for skip in skips],
                _repeat(emb, n),
                {name: _repeat(value, n) for name, value in context.items()},
            )
            return [self._prediction(x, t, part) for part in output.chunk(n)]

        return h, finish

    def times_of(self, t: float | Tensor, batch: int) -> Tensor:
        """Return model times (batch,) on the network's device; a number is filled in there, since a copy would wait for it."""
        if not isinstance(t, Tensor):
            return torch.full((batch,), t, device=self.unet.device)
        times = t.to(self.unet.device)
        return times.expand(batch) if times.ndim == 0 else times

    def places(self) -> dict[str, nn.Module]:
        """Return the middle block, the blocks of both halves, and as "up.N.K" the layers of the second half's before upsampling.

        A layer is a residual block with the attention that follows it, if one does.
        """
        found: dict[str, nn.Module] = {"bottleneck": self.unet.mid_block}
        found |= {f"down.{n}": block for n, block in enumerate(self.unet.down_blocks)}
        for n, block in enumerate(self.unet.up_blocks):
            layers = getattr(block, "attentions", None) or block.resnets
            found |= {f"up.{n}": block} | {f"up.{n}.{k}": layer for k, layer in enumerate(layers)}
        return found

    def accelerate(self, *, channels_last: bool = False, compile: bool = False) -> Self:
        """Change the memory layout, or compile the layers inside the blocks (whole blocks would hide taps); return self."""
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if compile:
            for block in (*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks):
                for layer in (*block.resnets, *(getattr(block, "attentions", None) or ())):
                    layer.compile()
        return self

    def _input(self, x: Tensor, cond: Condition | None) -> Tensor:
        """Return what enters the first convolution, in the network's dtype."""
        return x.to(self.unet.dtype)

    def _embedding(self, t: float | Tensor, cond: Condition | None, batch: int) -> Tensor:
        """Return what modulates every residual block, (batch, D): the embedding of the time."""
        return self.time_embedding(self.times_of(t, batch))

    def _context(self, cond: Condition | None, batch: int) -> Mapping[str, Tensor]:
        """Return what the blocks with cross-attention receive by name, (batch, ...)."""
        return {}

    def _decode_half(self, hidden: Tensor, skips: list[Tensor], emb: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        for block in self.unet.up_blocks:
            count = len(block.resnets)
            skips, now = skips[:-count], tuple(skips[-count:])
            hidden = block(hidden, now, emb, **_attended(block, context), **_odd_size(hidden, skips))
        return self.unet.conv_out(self.unet.conv_act(self.unet.conv_norm_out(hidden)))

    def _prediction(self, x: Tensor, t: float | Tensor, output: Tensor) -> Prediction:
        mean, *variance = output.float().split(x.shape[1], dim=1)
        pred = self.schedule.convert(x.float(), t, mean, self.parameterization)
        if variance:
            pred.features["variance"] = variance[0]
        return pred


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype that a configuration names.

    Raises:
        UserError: another name.
    """
    if name not in DTYPES:
        raise UserError(f"backbone.dtype={name} is unknown: choose from {', '.join(DTYPES)}")
    return DTYPES[name]


def _attended(block: nn.Module, context: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return context if getattr(block, "has_cross_attention", False) else {}


def _odd_size(hidden: Tensor, skips: Sequence[Tensor]) -> dict[str, Any]:
    """Return the size to upsample to where it is not the double: the level below was halved from an odd size."""
    if not skips or skips[-1].shape[2:] == (2 * hidden.shape[2], 2 * hidden.shape[3]):
        return {}
    return {"upsample_size": skips[-1].shape[2:]}


def _repeat(tensor: Tensor, n: int) -> Tensor:
    return tensor.repeat(n, *[1] * (tensor.ndim - 1)) if n > 1 else tensor
