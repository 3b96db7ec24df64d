"""The kernels that a GPU would take, for tensors of the meta device: automatic mixed precision, and attention in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# Autocast's lists, as far as networks use them (torch/csrc: aten/src/ATen/autocast_mode.h).
HALF = {
    F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, torch.matmul, torch.bmm, torch.mm, torch.baddbmm, torch.addmm,
    torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__, Tensor.__rmatmul__,
}  # fmt: skip
FULL = {
    F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, F.cross_entropy, F.mse_loss, F.l1_loss,
    F.normalize, F.cosine_similarity, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow, Tensor.pow, Tensor.__pow__,
    torch.rsqrt, Tensor.rsqrt, torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum, torch.norm, Tensor.norm, torch.prod,
}  # fmt: skip
WIDEST = 256  # channels of a head in the kernel for half precision


class AsOnGpu(TorchFunctionMode):
    """Casts and attends as CUDA does while it is open; tensors of other devices go as they are.

    Args:
        precision: 32 or "bf16", as `trainer.precision`.

    Attributes:
        copies: the half copies of weights that are kept until `end_step`: as torch has it, of those alone that are trained.
    """

    def __init__(self, precision: int | str = 32) -> None:
        super().__init__()
        self.active = str(precision) == "bf16"
        self.copies: dict[int, Tensor] = {}
        self.kept = 0

    def end_step(self) -> None:
        """Drop the copies, as an optimiser step does."""
        self.copies.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args and args[0].is_meta:
            return attention(*self._cast(args), **self._cast(kwargs))
        if self.active and func in HALF:
            return func(*self._cast(args), **self._cast(kwargs))
        if self.active and func in FULL:
            return func(*tree_map(_whole, args), **tree_map(_whole, kwargs))
        return func(*args, **kwargs)

    def _cast(self, values: Any) -> Any:
        return tree_map(self._half, values) if self.active else values

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(torch.bfloat16)
            self.kept = max(self.kept, sum(copy.nbytes for copy in self.copies.values()))
        return self.copies[id(value)]

    @contextmanager
    def replacing_autocast(self) -> Iterator[None]:
        """Let torch.autocast switch this mode where it is asked for the meta device, which it does not know."""
        own = torch.autocast
        torch.autocast = lambda device_type, *args, enabled=True, **more: (  # type: ignore[assignment,misc]
            self._switched(enabled) if device_type == "meta" else own(device_type, *args, enabled=enabled, **more)
        )
        try:
            yield
        finally:
            torch.autocast = own  # type: ignore[misc]

    @contextmanager
    def _switched(self, enabled: bool) -> Iterator[None]:
        before, self.active = self.active, enabled
        try:
            yield
        finally:
            self.active = before


def differentiate(total: Tensor) -> None:
    """Run the backward pass of a scalar inside the mode, which Tensor.backward would leave and blocks run again would miss."""
    _engine_run_backward((total,), (torch.ones_like(total),), False, False, (), allow_unreachable=True, accumulate_grad=True)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **more: Any,
) -> Tensor:
    """Return attention over (B, H, L, D), or (B, L, D), by the kernel that keeps no map of it."""
    if q.ndim == 3:
        mask = None if attn_mask is None else attn_mask[:, None]
        return attention(*(one[:, None] for one in (q, k, v)), mask, dropout_p, is_causal, scale)[:, 0]
    settings: Mapping[str, Any] = {"scale": scale}
    if attn_mask is None and q.dtype != torch.float32 and q.shape[-1] <= WIDEST:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, **settings)[0]
    bias = None if attn_mask is None else attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p, is_causal, **settings)[0]


def _whole(value: Any) -> Any:
    lower = isinstance(value, Tensor) and value.is_meta and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if lower else value
