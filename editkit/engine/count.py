"""Counting what a network is asked: calls, passes through each half, floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from editkit.engine.taps import recomputing


@dataclass
class Counter:
    """What went through a network; passes that activation checkpointing repeats and backward passes do not count.

    Attributes:
        calls: times it was invoked, whatever the batch: the depth in time.
        evaluations: samples that it was invoked on; a pair for classifier-free guidance is two.
        encoder: samples through its first half.
        decoder: samples through its second half, two for one sample of an asymmetric step.
        flops: forward floating-point operations, a multiplication and an addition being two; 0 if not measured.
    """

    calls: int = 0
    evaluations: int = 0
    encoder: int = 0
    decoder: int = 0
    flops: int = 0

    def per_image(self, images: int) -> dict[str, float]:
        """Return evaluations, encoder, decoder and flops of one of `images` images that were worked on."""
        return {name: getattr(self, name) / images for name in ("evaluations", "encoder", "decoder", "flops")}


@contextmanager
def count_calls(backbone: nn.Module, *, flops: bool = True) -> Iterator[Counter]:
    """Count what a backbone is asked while the context is open, through `forward` and through `halves`; contexts nest.

    Args:
        backbone: a module whose forward takes (x, t, cond); it may have `halves(x, t, cond) -> (h, finish)`.
        flops: measure them, once for every input shape, which makes that one call slower.
    """
    counting = _Counting(backbone, flops)
    replaced = [name for name in ("forward", "halves") if hasattr(backbone, name)]
    outer = {name: vars(backbone)[name] for name in replaced if name in vars(backbone)}
    for name in replaced:
        object.__setattr__(backbone, name, getattr(counting, name))
    try:
        yield counting.counter
    finally:
        for name in replaced:
            object.__delattr__(backbone, name)
        for name, counted in outer.items():
            object.__setattr__(backbone, name, counted)


class _Counting:
    """Stands in for a backbone's `forward` and `halves`. Where one is written by way of the other, the outer one counts."""

    def __init__(self, backbone: nn.Module, flops: bool) -> None:
        self.counter = Counter()
        self._forward = backbone.forward
        self._halves = getattr(backbone, "halves", None)
        self._flops = flops
        self._known: dict[Hashable, int] = {}
        self._inside = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._uncounted:
            return self._forward(x, *args, **kwargs)
        self._note(calls=1, evaluations=len(x), encoder=len(x), decoder=len(x))
        return self._measured(("forward", x.shape), lambda: self._forward(x, *args, **kwargs))

    def halves(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert self._halves is not None
        run = partial(self._halves, x, *args, **kwargs)
        if self._uncounted:
            return run()
        self._note(calls=1, evaluations=len(x), encoder=len(x))
        h, finish = self._measured(("halves", x.shape), run)

        def counted_finish(hs: Sequence[Tensor]) -> Any:
            if self._uncounted:
                return finish(hs)
            self._note(decoder=sum(len(one) for one in hs))
            return self._measured(("finish", x.shape, len(hs)), lambda: finish(hs))

        return h, counted_finish

    @property
    def _uncounted(self) -> bool:
        return self._inside or recomputing()

    def _note(self, **more: int) -> None:
        for name, count in more.items():
            setattr(self.counter, name, getattr(self.counter, name) + count)

    def _measured(self, key: Hashable, run: Callable[[], Any]) -> Any:
        self._inside = True
        try:
            if not self._flops or key in self._known:
                result = run()
            else:
                with FlopCounterMode(display=False) as mode:
                    result = run()
                self._known[key] = mode.get_total_flops()
            self.counter.flops += self._known.get(key, 0)
            return result
        finally:
            self._inside = False


def products(func: Any, args: Any, kwargs: Any, made: Any) -> int:
    """Return the floating-point operations of one operation as a dispatch mode sees it; 0 for all but products."""
    rule = flop_registry.get(func._overloadpacket)
    return 0 if rule is None else rule(*args, **kwargs, out_val=made)


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of products while it is open, backward passes included.

    Attributes:
        total: operations, two for a multiplication with its addition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        self.total += products(func, args, kwargs, made)
        return made
