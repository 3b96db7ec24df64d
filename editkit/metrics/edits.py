"""Did the edit happen, and did nothing else change? Both read by the oracle, per image."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editkit.metrics.oracle import Oracle

Target = Any  # the value of a categorical factor, or the accepted range (low, high) of a continuous one


@dataclass(frozen=True)
class EditScores:
    """How a batch of edits went, one float32 per image, 0 to 1 each.

    Attributes:
        success: 1 where the oracle reads the target, else 0.
        preservation: fraction of the other visible factors that the oracle reads as they were; nan if there are none.
        score: sqrt(success x preservation).
        kept: per factor, 1 where it is as it was, 0 where it is not, nan where it does not count.
    """

    success: Tensor
    preservation: Tensor
    score: Tensor
    kept: dict[str, Tensor]


def judge(
    oracle: Oracle,
    images: Tensor,
    *,
    wanted: Mapping[str, Target],
    truth: Mapping[str, Tensor],
    visible: Mapping[str, Tensor],
    implied: Collection[str],
) -> EditScores:
    """Judge edited images (B, 3, H, W) in [-1, 1].

    Args:
        oracle: reads the factors.
        images: the edited images.
        wanted: the target of each factor that the edit asks for.
        truth: the factors of the *source* faces, from `Oracle.truth`.
        visible: per factor (B,) bool, whether the source picture shows it.
        implied: factors that the edit may rightly change; they are not charged.
    """
    readings = oracle.read(images)
    happened = torch.stack([_matches(oracle, name, readings[name], target) for name, target in wanted.items()]).all(0)
    right = oracle.agreement(readings, truth)
    kept = {name: _only(right[name], visible[name]) for name in right if name not in implied}
    preservation = torch.stack(list(kept.values())).nanmean(0)
    success = happened.float()
    return EditScores(success, preservation, (success * preservation).sqrt(), kept)


def _matches(oracle: Oracle, factor: str, reading: Tensor, target: Target) -> Tensor:
    if factor in oracle.categorical:
        return reading == oracle.categorical[factor].index(target)
    low, high = target
    return (reading >= low) & (reading <= high)


def _only(flags: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, flags.float(), torch.nan)
