"""Work that does not change over the steps of a run, done once: what a network makes of a prompt, of a hint image.

Inside `once_per_run` the function `once` remembers results by the *objects* that went in, not by their content: no tensor
is compared, copied or waited for. Conditions that recur (the branches of a guidance) are joined once too, so that a
network sees the same objects at every step. While gradients are recorded, and in compiled code, nothing is remembered.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_KEPT = 4  # results of one place: as many recurring prompts as a run alternates between
_RUN: ContextVar[defaultdict[Hashable, deque[tuple[Any, ...]]] | None] = ContextVar("run", default=None)


@contextmanager
def once_per_run() -> Iterator[None]:
    """Let `once` remember while the context is open; one inside another shares its memory."""
    if _RUN.get() is not None:
        yield
        return
    token = _RUN.set(defaultdict(lambda: deque(maxlen=_KEPT)))
    try:
        yield
    finally:
        _RUN.reset(token)


def once(place: Hashable, compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return compute(*tensors), remembered for the same tensor objects, unchanged in place, while a run is open.

    The tensors are kept alive as long as their result, so that no other object can take their identity. At each place the
    latest four results are kept.

    Args:
        place: what the work is, and all that it depends on beside the tensors.
        compute: the work; it must not draw random numbers.
    """
    run = None if torch.compiler.is_compiling() else _RUN.get()
    if run is None or torch.is_grad_enabled():
        return compute(*tensors)
    versions = tuple(map(_version, tensors))
    for known, known_versions, result in run[place]:
        if versions == known_versions and all(one is other for one, other in zip(known, tensors, strict=True)):
            return result
    result = compute(*tensors)
    run[place].append((tensors, versions, result))
    return result


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
