"""Attributes of pictures: named things that are true or not, told by the factors of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What a factor must be: one of some values, {"above": x} or {"below": x}, or None: true or a number above 0, as the labels
# -1 and 1 of CelebA-HQ have it.
Claim = Sequence[Any] | Mapping[str, float] | None


def holds(claims: Mapping[str, Claim], factors: Mapping[str, Any]) -> bool:
    """Say whether all claims about factors are true.

    Raises:
        KeyError: a factor that is not known.
    """
    return all(_true(claim, factors[name]) for name, claim in claims.items())


def example(claims: Mapping[str, Claim]) -> dict[str, Any]:
    """Return factors of which all claims are true."""
    return {name: _fitting(claim) for name, claim in claims.items()}


def _true(claim: Claim, value: Any) -> bool:
    if claim is None:
        return float(value) > 0
    if isinstance(claim, Mapping):
        return claim.get("above", float("-inf")) < float(value) < claim.get("below", float("inf"))
    return value in claim


def _fitting(claim: Claim) -> Any:
    if claim is None:
        return True
    if isinstance(claim, Mapping):
        return claim["above"] + 1e-3 if "above" in claim else claim["below"] - 1e-3
    return claim[0]
