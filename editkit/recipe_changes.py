"""What differs between two configurations of one run, key by key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What may differ between two starts of one run without a word: how far, how often and where, not what is trained.
MAY_CHANGE = re.compile(
    r"(card|evaluate|run_dir|logger|cluster|engine)\b|trainer\.(steps|images|ema_device|accelerator|devices|num_nodes|num_workers|save_every_s|keep|log_every|sample_every)$"
)
LINES, WIDTH = 10, 60  # shown at most


@dataclass(frozen=True)
class Change:
    """One key with its value in the run and in the new configuration; None where there is no such key."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.before)} -> {_short(self.now)}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the changes that matter between two nested configurations, by key."""
    left, right = leaves(before), leaves(now)
    found = [Change(key, left.get(key), right.get(key)) for key in sorted(left.keys() | right.keys())]
    return [one for one in found if one.before != one.now and not MAY_CHANGE.match(one.key)]


def listed(changes: Sequence[Change]) -> list[str]:
    """Return a line for each change, the last one a count if there are too many."""
    rest = len(changes) - LINES
    return [*map(str, changes[:LINES]), *([f"and {rest} more"] if rest > 0 else [])]


def leaves(node: Any, where: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    if not isinstance(node, Mapping):
        return {where: node}
    return {key: value for name, item in node.items() for key, value in leaves(item, f"{where}.{name}".lstrip(".")).items()}


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
