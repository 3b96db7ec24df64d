"""What a training takes of memory and of arithmetic, counted on the meta device before it is started: nothing is computed.

The counting is exact for weights, gradients and optimiser; what a batch holds is the peak of the tensors that are alive. What
is not counted: memory that an allocator leaves between blocks, and the workspaces of libraries.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.training.as_on_gpu import AsOnGpu, differentiate
from editkit.training.live import Live, ReadAsUnknown
from editkit.training.method import Method
from editkit.training.plan import Plan

CONTEXT = int(0.8 * 2**30)  # bytes of CUDA and its libraries
BLOCK = 256  # numbers of 8-bit Adam that share a scale


@dataclass(frozen=True)
class Part:
    """Parameters of a part of a method, and the bytes that they and its buffers are."""

    parameters: int
    trained: int
    bytes: int


@dataclass(frozen=True)
class Batch:
    """What one batch takes of one device.

    Attributes:
        updates: of all groups together.
        flops: forward and backward, with what `Method.sources` computes.
        sources: FLOPs of those, which a training keeps where images return.
        held: bytes at the peak beside gradients and copies.
        copies: bytes of the half copies of the weights.
    """

    updates: int
    flops: int
    sources: int
    held: int
    copies: int


@dataclass(frozen=True)
class Optimizer:
    """Bytes of an optimiser's state, and of what a step holds besides."""

    state: int
    step: int


def parts(method: Method) -> dict[str, Part]:
    """Return the parts of a method that is ready for training, by name; a backbone's are named one by one."""
    found = {}
    for name, module in method.named_children():
        inner = list(module.named_children()) if isinstance(module, Backbone) else [("", module)]
        found |= {f"{name}.{part}".rstrip("."): _part(one) for part, one in inner}
    return {name: part for name, part in found.items() if part.bytes}


def _part(module: nn.Module) -> Part:
    weights = list(module.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    tensors = [*weights, *module.buffers()]
    return Part(sum(weight.numel() for weight in weights), trained, sum(tensor.nbytes for tensor in tensors))


def trained_parameters(method: Method) -> list[nn.Parameter]:
    """Return what is trained, all groups together."""
    return [parameter for named in method.trained_parameters().values() for parameter in named.values()]


def optimizer(factory: Callable[..., torch.optim.Optimizer], parameters: Iterable[nn.Parameter], *, eight_bit: bool) -> Optimizer:
    """Take one step on the meta device and return what it leaves and holds.

    Args:
        factory: as of a recipe, a partial of a class of torch.optim.
        eight_bit: count bitsandbytes' Adam instead, two bytes a parameter and two scales a block, which holds nothing besides.
    """
    own = [nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in parameters]
    if eight_bit:
        count = sum(parameter.numel() for parameter in own)
        return Optimizer(count * 2 + count * 8 // BLOCK, 0)
    for parameter in own:
        parameter.grad = torch.empty_like(parameter)
    keywords = dict(getattr(factory, "keywords", {}))
    fused = bool(keywords.pop("fused", False))
    made = getattr(factory, "func", factory)(own, **keywords, foreach=not fused)
    gc.collect()
    with Live() as live:
        made.step()
    state = sum(value.nbytes for one in made.state.values() for value in one.values() if isinstance(value, Tensor))
    return Optimizer(state, 0 if fused else live.peak - live.now)


def batch_of(method: Method, size: int) -> dict[str, Any]:
    """Return a method's dummy batch with `size` items, on its device."""
    dummy = method.transfer_batch_to_device(method.dummy_batch(), method.device, 0)
    return {name: _repeated(value, size) for name, value in dummy.items()}


def _repeated(value: Any, size: int) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value] * -(-size // len(value)))[:size].contiguous()
    return (list(value) * -(-size // len(value)))[:size] if isinstance(value, (list, tuple)) else value


def batch(method: Method, plan: Plan) -> Batch:
    """Count a batch of one device of a method on the meta device (or any other) that is ready for training.

    Raises:
        NotThere: the method reads a number that decides what is computed.
    """
    given, weights = batch_of(method, plan.batch_size // plan.world), trained_parameters(method)
    gpu, updates = AsOnGpu(plan.precision), 0
    gradients = sum(weight.nbytes for weight in weights)
    for weight in weights:
        weight.grad = torch.empty_like(weight) if plan.accumulate > 1 else None
    with ReadAsUnknown(), gpu.replacing_autocast(), gpu:
        sources = _flops(functools.partial(method.sources, given))
        gc.collect()
        with Live() as live:
            for update in method.updates(given):
                differentiate(update.total() / plan.accumulate)
                if plan.accumulate == 1:
                    for weight in weights:
                        weight.grad = None
                gpu.end_step()
                updates += 1
                del update
    for weight in weights:
        weight.grad = None
    beside = gpu.kept + (gradients if plan.accumulate == 1 else 0)
    return Batch(updates, live.flops, sources, max(live.peak - beside, 0), gpu.kept)


def _flops(compute: Callable[[], Any]) -> int:
    with Live() as live:
        compute()
    return live.flops


def memory(found: Mapping[str, Part], counted: Batch | None, state: Optimizer, plan: Plan, trained: int) -> dict[str, int]:
    """Return the bytes of one device by what they are for; without a `Batch` what can be told.

    Args:
        trained: bytes of the trained parameters.
    """
    share = plan.world if plan.sharded else 1  # each process then holds its rows of what is trained
    average = trained // share if plan.ema is not None and plan.ema_device in (None, "cuda", "gpu") else 0
    weights = sum(part.bytes for part in found.values())
    frozen = sum(part.bytes for part in found.values() if not part.trained)
    rows = {
        "weights": (weights - frozen) // share,
        "frozen networks": frozen,
        "half copies of the weights": counted.copies if counted else 0,
        "gradients": trained // share,
        "gradients in exchange": trained if plan.world > share else 0,  # the buckets of DistributedDataParallel
        "optimiser": state.state // share,
        "moving average": average,
        "a batch": max(counted.held, state.step) if counted else state.step,
        "CUDA": CONTEXT,
    }
    return {name: size for name, size in rows.items() if size}
