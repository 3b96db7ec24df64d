"""Did the edit of a scene happen, and did nothing else change? Both from what a judge reads in the edited picture.

An edit is turned into claims about the edited picture: those that it asks for, and those that must still be true. A reading
says what the judge saw in the whole and in each region that a claim is about, so whoever reads, the scores are counted alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from editkit.metrics.images import differing, psnr
from editkit.metrics.scene_oracle import THERE, SceneOracle

ASPECTS = ("shape", "colour", "texture")
WHOLES = ("place", "time", "season", "style", "count")
CHANGED: Mapping[str, tuple[str, ...]] = {"recolour": ("colour",), "reshape": ("shape",), "retexture": ("texture",)}
OF_THE_WHOLE: Mapping[str, str] = {"place": "place", "time": "time", "season": "season", "restyle": "style"}
ENOUGH = 0.15  # of an object must be left in a region that only a change can fill, or no claim is made about it


class Edit(Protocol):
    """A kind of edit, the scenes before and after it, and the object that changes, as it is in each of them.

    Scenes have `place`, `time`, `season`, `style` and `things`; things have `shape`, `colour` and `texture`.
    """

    @property
    def kind(self) -> str: ...
    @property
    def source(self) -> Any: ...
    @property
    def target(self) -> Any: ...
    @property
    def before(self) -> Any: ...
    @property
    def after(self) -> Any: ...


@dataclass(frozen=True)
class Claim:
    """What must be read.

    Attributes:
        region: number of the region it is about; None for the whole picture.
        values: values by factor or aspect; without any, nothing may stand in the region.
    """

    region: int | None
    values: Mapping[str, str]


@dataclass(frozen=True)
class Expectation:
    """What a good edit must look like.

    Attributes:
        asked: what the edit asks for.
        kept: what must be as it was, a claim for each factor and aspect.
        regions: (N, H, W) float32, 1 = the region that claims call by its number.
        least: by region number, the share of it from which on an object stands there, for regions wider than an object.
    """

    asked: tuple[Claim, ...]
    kept: tuple[Claim, ...]
    regions: Tensor
    least: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneReading:
    """What was read in one picture: values of the whole, and of what stands in each region; None where nothing does."""

    whole: Mapping[str, str]
    regions: Sequence[Mapping[str, str] | None]


@dataclass(frozen=True)
class SceneScores:
    """How a batch of edits went, (B,) float32 each.

    Attributes:
        success: 1 where all that was asked for is read, else 0.
        preservation: share of what must be as it was that is; nan where there is nothing.
        score: sqrt(success x preservation).
    """

    success: Tensor
    preservation: Tensor
    score: Tensor


def expected(
    edit: Edit, before: Tensor, after: Tensor, readable_before: Collection[str], readable_after: Collection[str]
) -> Expectation:
    """Return the claims of an edit.

    Args:
        edit: what was to happen.
        before, after: visible masks of the objects of source (N, H, W) and target (M, H, W), in the scenes' order.
        readable_before, readable_after: factors and aspects that can be read in the two pictures; no claim is about others.
    """
    things, old = list(edit.target.things), list(edit.source.things)
    regions = [mask.float() for mask in after]
    asked: list[Claim] = []
    kept: list[Claim] = list(_kept_wholes(edit, set(readable_before) & set(readable_after)))
    if edit.kind in OF_THE_WHOLE:
        name = OF_THE_WHOLE[edit.kind]
        asked.append(Claim(None, {name: getattr(edit.target, name)}))
    for number, thing in enumerate(things):
        regions[number] = _comparable(edit, thing, regions[number], dict(zip(old, before.float(), strict=True)))
        told = {name: getattr(thing, name) for name in ASPECTS if name in readable_after}
        new = _asked_of(edit, thing, told)
        if new:
            asked.append(Claim(number, {name: told[name] for name in new}))
        if not new or edit.kind in CHANGED:
            kept += [Claim(number, {name: value}) for name, value in told.items() if name not in new]
    if edit.kind in ("remove", "move"):
        left = before[old.index(edit.before)].float()
        bare = left * (1 - after.float().amax(0)) if len(after) else left
        if edit.kind == "remove" or bare.sum() >= ENOUGH * left.sum():
            asked.append(Claim(len(regions), {}))
            regions.append(_if_enough(bare, left))
    size = before.shape[-2:] if len(before) else after.shape[-2:]
    return Expectation(tuple(asked), tuple(kept), torch.stack(regions) if regions else torch.zeros(0, *size))


def judged(expectation: Expectation, reading: SceneReading) -> tuple[float, float]:
    """Return success (0 or 1) and preservation (0 to 1, nan where nothing was to be kept) of one edited picture."""
    happened = all(holds(claim, reading) for claim in expectation.asked)
    kept = [holds(claim, reading) for claim in expectation.kept]
    return float(happened), sum(kept) / len(kept) if kept else float("nan")


def holds(claim: Claim, reading: SceneReading) -> bool:
    """Say whether a reading bears a claim out."""
    seen = reading.whole if claim.region is None else reading.regions[claim.region]
    if not claim.values:
        return seen is None
    return seen is not None and all(seen.get(name) == value for name, value in claim.values.items())


def score(expectations: Sequence[Expectation], readings: Sequence[SceneReading]) -> SceneScores:
    """Judge edited pictures by what was read in them."""
    success, preservation = torch.tensor([judged(*pair) for pair in zip(expectations, readings, strict=True)]).unbind(1)
    return SceneScores(success, preservation, (success * preservation).sqrt())


def kept_by_factor(expectations: Sequence[Expectation], readings: Sequence[SceneReading]) -> dict[str, Tensor]:
    """Return for each factor of the whole and aspect of the objects the share (B,) of its claims that hold; nan without any."""
    found = {}
    for name in (*WHOLES, *ASPECTS):
        flags = [
            [holds(claim, reading) for claim in one.kept if name in claim.values]
            for one, reading in zip(expectations, readings, strict=True)
        ]
        found[name] = torch.tensor([sum(own) / len(own) if own else float("nan") for own in flags])
    return found


@torch.no_grad()
def read(oracle: SceneOracle, images: Tensor, expectations: Sequence[Expectation]) -> list[SceneReading]:
    """Let the oracle read pictures (B, 3, H, W) in [-1, 1], and in each the regions that its claims are about."""
    most = max(1, *(len(one.regions) for one in expectations))
    masks = torch.zeros(len(images), most, *images.shape[-2:], device=images.device)
    for mask, one in zip(masks, expectations, strict=True):
        mask[: len(one.regions)] = one.regions.to(mask)
    whole, objects = oracle.read_scene(images), oracle.read_objects(images, masks)
    readings = []
    for k, one in enumerate(expectations):
        told = {name: part.values[int(part.classes[k])] for name, part in whole.items()}
        seen = [
            {name: part.values[int(part.classes[k, n])] for name, part in objects.aspects.items()}
            if objects.presence[k, n] >= one.least.get(n, THERE)
            else None
            for n in range(len(one.regions))
        ]
        readings.append(SceneReading(told, seen))
    return readings


def against_truth(images: Tensor, source: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Return the PSNR (B,) to the truth inside and outside the pixels where truth and source differ; nan where there are none.

    Args:
        images, source, truth: (B, 3, H, W) in [-1, 1].
    """
    inside = differing(source, truth)
    return {"psnr_inside": psnr(images, truth, inside), "psnr_outside": psnr(images, truth, 1 - inside)}


def _kept_wholes(edit: Edit, readable: set[str]) -> Iterator[Claim]:
    """Yield a claim for each factor of the whole that the edit leaves as it is and that both pictures show."""
    before, after = _whole(edit.source), _whole(edit.target)
    for name in WHOLES:
        if name in readable and before[name] == after[name] and OF_THE_WHOLE.get(edit.kind) != name:
            yield Claim(None, {name: after[name]})


def _whole(scene: Any) -> dict[str, str]:
    return {name: getattr(scene, name) for name in WHOLES if name != "count"} | {"count": str(len(scene.things))}


def _asked_of(edit: Edit, thing: Any, told: Mapping[str, str]) -> tuple[str, ...]:
    """Name the aspects of an object of the target that the edit asks for: none of one that is to stay as it is."""
    if edit.after is None or thing != edit.after:
        return ()
    return tuple(name for name in CHANGED.get(edit.kind, ASPECTS) if name in told)


def _comparable(edit: Edit, thing: Any, region: Tensor, before: Mapping[Any, Tensor]) -> Tensor:
    """Return the part of an object's region that both pictures show of it; of a moved one that which only the move covers."""
    if thing == edit.after:
        if edit.before is None:
            return region
        was = before[edit.before]
        return _if_enough(region * (1 - was if edit.kind == "move" else was), region)
    return _if_enough(region * before[thing], region)


def _if_enough(part: Tensor, whole: Tensor) -> Tensor:
    return part if part.sum() >= ENOUGH * whole.sum() else whole
