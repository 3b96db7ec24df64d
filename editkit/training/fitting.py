"""Whether a run may go on from a checkpoint whose recipe was another one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from editkit.errors import UserError

FIXED = ("seed", "method.optimizer._target_")  # the noise and the order of the images, what the optimiser's state means
RATES = ("method.optimizer", "method.scheduler")
WAYS = "give the former value back, or start anew with --fresh or another -o"


class DoesNotFit(UserError):
    """The newest checkpoint cannot be continued with this configuration; nothing was touched."""


def check(path: Path, before: str, now: str, images: tuple[int, int]) -> None:
    """Refuse what a run cannot change on its way.

    Args:
        path: of the checkpoint, for messages.
        before, now: frozen recipes as YAML, the checkpoint's and this process's; empty if there is none.
        images: of the training set, the checkpoint's and now.

    Raises:
        DoesNotFit: another seed or kind of optimiser, or other data with another number of images, whose order is another.
    """
    old, new = _read(before), _read(now)
    for key in FIXED:
        if old and new and _at(old, key) != _at(new, key):
            raise DoesNotFit(f"{path} was saved with {key}={_at(old, key)}, now it is {_at(new, key)}: {WAYS}")
    if images[0] != images[1]:
        what = f"{path} is of {images[0]} training images, now there are {images[1]}"
        if _at(old, "data") != _at(new, "data"):
            raise DoesNotFit(f"{what}, in another order: {WAYS}")
        warnings.warn(f"{what}: their order from here on is another", stacklevel=3)


def other_rates(before: str, now: str) -> bool:
    """Say whether the optimiser's settings or the learning rate's schedule differ between two frozen recipes."""
    old, new = _read(before), _read(now)
    return any(_at(old, key) != _at(new, key) for key in RATES)


def _read(text: str) -> Mapping[str, Any]:
    return yaml.safe_load(text) or {}


def _at(node: Any, key: str) -> Any:
    """Return what stands at a dotted key, None if nothing does."""
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
