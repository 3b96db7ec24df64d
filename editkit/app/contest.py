"""Running an editor over the cases of an evaluation: its pictures, its seconds, its network calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from editkit.app.questions.base import Cases
from editkit.engine.blend import paste
from editkit.engine.cache import InversionCache
from editkit.errors import UserError
from editkit.metrics.images import eight_bit
from editkit.training.editor import Editor
from editkit.types import EditRequest, EditResult

CALLS = "network_calls"


@dataclass(frozen=True)
class Outcome:
    """What came out of one method for one edit.

    Attributes:
        variants: pictures (N, 3, H, W) in [-1, 1] in 8 bits: "raw" as returned; "pasted", with the source put back outside
            the mask, for methods that were given a mask or found one.
        seconds: per image with its inversion, measured on the first batch, which reuses nothing; None for no method at all.
        calls: network evaluations per image with those of its inversion, as the method reports them; None if it does not.
        returned: (N, 3, H, W), what the method made of its own raw pictures where the way back was asked for.
    """

    variants: dict[str, Tensor]
    seconds: float | None
    calls: float | None
    returned: Tensor | None = None


def no_edit(cases: Cases) -> Outcome:
    """Return the sources as they are."""
    return Outcome({"raw": cases.images}, None, 0.0, None if cases.back(cases.images) is None else cases.images)


def run(
    editor: Editor,
    cases: Cases,
    *,
    batch_size: int,
    steps: int | None = None,
    seed: int = 0,
    cache: InversionCache | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Edit all cases in batches, and edit the results back where the cases ask for that.

    Args:
        editor: what edits. If it has a `cache`, it gets this one; if it can `measure` its reconstructions, it need not.
        cases: the sources.
        batch_size: requests at once; one at a time for an editor that fits something to each image.
        steps: sampling steps; None is the editor's own.
        seed: of all noise.
        cache: inversions of the same pictures for other edits and methods.
        tick: called after each batch, on the way back too.

    Raises:
        UserError: the editor needs an input that the cases do not have, or returned values that are not finite.
    """
    knobs: dict[str, Any] = {"batch_size": batch_size, "steps": steps, "seed": seed, "cache": cache, "tick": tick}
    there = _one_way(editor, cases, **knobs)
    back = cases.back(there.variants["raw"])
    return there if back is None else replace(there, returned=_one_way(editor, back, **knobs).variants["raw"])


def _one_way(
    editor: Editor,
    cases: Cases,
    *,
    batch_size: int,
    steps: int | None,
    seed: int,
    cache: InversionCache | None,
    tick: Callable[[], None],
) -> Outcome:
    requests = cases.requests(editor.needs, steps=steps, seed=seed)
    editor.check(requests)
    size = 1 if editor.per_image else batch_size
    _set(editor, measure=False, cache=None)
    began = time.perf_counter()
    batches = [_batch(editor, requests[:size])]
    seconds = (time.perf_counter() - began) / len(batches[0].images)
    tick()
    _set(editor, cache=cache)
    for start in range(size, len(requests), size):
        batches.append(_batch(editor, requests[start : start + size]))
        tick()
    raw = eight_bit(torch.cat([batch.images for batch in batches]))
    masks = [batch.masks for batch in batches if batch.masks is not None]
    pasted = {"pasted": paste(cases.images, raw, torch.cat(masks))} if len(masks) == len(batches) else {}
    calls = [number for batch in batches for number in batch.scores.get(CALLS, ())]
    return Outcome({"raw": raw, **pasted}, seconds, sum(calls) / len(calls) if calls else None)


def _set(editor: Editor, **values: object) -> None:
    for name, value in values.items():
        if hasattr(editor, name):
            setattr(editor, name, value)


@torch.no_grad()
def _batch(editor: Editor, requests: Sequence[EditRequest]) -> EditResult:
    """Return the results of some requests on the CPU, with the masks that they may be pasted through."""
    result = editor.edit(requests, editor.prepare(requests))
    images = result.images.float().cpu()
    if not torch.isfinite(images).all():
        raise UserError(f"{editor.name} returned values that are not finite: try --dtype fp32")
    given = [request.mask for request in requests if request.mask is not None]
    masks = result.masks.float().cpu() if result.masks is not None else torch.stack(given) if given else None
    return EditResult(images, masks, scores=result.scores)
