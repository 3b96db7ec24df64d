"""Several queries of one denoiser as one batched call: the branches of a guidance, or one image at many levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from editkit.engine.denoiser import Denoiser
from editkit.engine.once import once
from editkit.types import Condition, Prediction

Lane = tuple[Tensor, float | Tensor, Condition | None]


def evaluate(denoiser: Denoiser, lanes: Sequence[Lane]) -> list[Prediction]:
    """Query the denoiser once for all lanes (x, t, cond) and return a Prediction for each.

    A single lane is passed on as it is, so it gives the same bits as calling the denoiser.

    Raises:
        ValueError: conditions that cannot share a batch.
    """
    if len(lanes) == 1:
        return [denoiser(*lanes[0])]
    xs, times, conds = zip(*lanes, strict=True)
    sizes = [len(x) for x in xs]
    return split(denoiser(torch.cat(xs), _one_time(times, sizes, xs[0].device), stack(conds, sizes)), sizes)


def stack(conds: Sequence[Condition | None], sizes: Sequence[int]) -> Condition | None:
    """Join conditions along the batch axis; a field of batch 1 is repeated to its lane's size.

    Raises:
        ValueError: a field that only some lanes have, or whose shapes differ.
    """
    if all(cond is None for cond in conds):
        return None
    if any(cond is None for cond in conds):
        raise ValueError("branches with and without a condition cannot share a batch: give the unconditional one a Condition too")
    return Condition(**{f.name: _join(f.name, [getattr(cond, f.name) for cond in conds], sizes) for f in fields(Condition)})


def select(cond: Condition | None, rows: Tensor) -> Condition | None:
    """Return the condition of some samples of the batch; fields of batch 1 serve all and stay."""
    if cond is None:
        return None
    return Condition(**{f.name: _rows(getattr(cond, f.name), rows) for f in fields(Condition)})


def split(pred: Prediction, sizes: Sequence[int]) -> list[Prediction]:
    """Undo the batching of `evaluate`; features that are not per-sample tensors are shared by all."""
    total = sum(sizes)

    def parts(value: Any) -> Sequence[Any]:
        batched = isinstance(value, Tensor) and value.ndim > 0 and len(value) == total
        return value.split(list(sizes)) if batched else [value] * len(sizes)

    x0, eps, logvar, shift = (parts(value) for value in (pred.x0, pred.eps, pred.logvar, pred.mean_shift))
    features = {name: parts(value) for name, value in pred.features.items()}
    return [
        Prediction(x0[n], eps[n], logvar[n], shift[n], {name: value[n] for name, value in features.items()})
        for n in range(len(sizes))
    ]


def _one_time(times: Sequence[float | Tensor], sizes: Sequence[int], device: torch.device) -> float | Tensor:
    if all(not isinstance(t, Tensor) and t == times[0] for t in times):
        return times[0]
    return torch.cat(
        [torch.as_tensor(t, dtype=torch.float32, device=device).expand(n) for t, n in zip(times, sizes, strict=True)]
    )


def _join(name: str, values: Sequence[Any], sizes: Sequence[int]) -> Any:
    kinds = {Tensor if isinstance(value, Tensor) else type(value) for value in values}  # a Parameter is a tensor too
    if len(kinds) > 1 and not all(isinstance(value, Mapping) for value in values):
        raise ValueError(f"branches differ in the condition's {name}: {', '.join(sorted(kind.__name__ for kind in kinds))}")
    first = values[0]
    if isinstance(first, Tensor):
        if len({value.shape[1:] for value in values}) > 1:
            raise ValueError(f"branches differ in the shape of the condition's {name}: {[tuple(v.shape) for v in values]}")
        return once(("lanes", tuple(sizes)), lambda *parts: _joined(parts, sizes), *values)
    if isinstance(first, Condition):
        return stack(values, sizes)
    if isinstance(first, Mapping):
        if len({frozenset(value) for value in values}) > 1:
            raise ValueError(f"branches differ in the names of the condition's {name}: {[sorted(value) for value in values]}")
        return {key: _join(f"{name}.{key}", [value[key] for value in values], sizes) for key in first}
    if any(value != first for value in values):
        raise ValueError(f"branches differ in the condition's {name}: {list(values)}")
    return first


def _joined(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    return torch.cat([part.expand(n, *part.shape[1:]) for part, n in zip(parts, sizes, strict=True)])


def _rows(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value if len(value) == 1 else value[rows.to(value.device)]
    if isinstance(value, Condition):
        return select(value, rows)
    if isinstance(value, Mapping):
        return {key: _rows(item, rows) for key, item in value.items()}
    return value
