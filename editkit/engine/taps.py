"""Seeing and replacing what modules put out, for as long as a context is open.

Under activation checkpointing a forward pass runs a second time during backward. A tap that replaces an output has to
act then too, or the gradient belongs to another function, so run backward inside the context; one that counts or
collects must not. `recomputing` tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from editkit.errors import suggestion

Tap = Callable[[Tensor], Tensor | None]

_AUTOGRAD = ModuleTracker()  # never entered: asked only whether this thread is inside a backward pass


def recomputing() -> bool:
    """Return whether this is a forward pass that activation checkpointing repeats during backward."""
    return _AUTOGRAD.is_bw


@contextmanager
def tap(module: nn.Module, fn: Tap) -> Iterator[None]:
    """Call `fn` with each output of a module, of its first element if that is a tuple; a returned tensor replaces it."""
    with module.register_forward_hook(lambda module, args, output: _through(fn, output)):
        yield


@contextmanager
def taps(model: nn.Module, hooks: Mapping[str, Tap]) -> Iterator[None]:
    """Tap several submodules by their dotted names.

    Raises:
        ValueError: a name that the model does not have.
    """
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, fn in hooks.items():
            if name not in modules:
                raise ValueError(f"no module {name!r} to tap.{suggestion(name, modules)}")
            stack.enter_context(tap(modules[name], fn))
        yield


@contextmanager
def collected(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of submodules by name, one per forward pass in order; recomputed passes do not count.

    Raises:
        ValueError: a name that the model does not have.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Tap:
        def fn(output: Tensor) -> None:
            if not recomputing():
                found[name].append(output)

        return fn

    with taps(model, {name: keep(name) for name in found}):
        yield found


def _through(fn: Tap, output: Any) -> Any:
    if isinstance(output, Tensor):
        return fn(output)
    replaced = fn(output[0])
    return None if replaced is None else (replaced, *output[1:])
