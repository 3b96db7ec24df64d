"""What one edit's trial showed, as the plain values of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from editkit.app.cases import Cases, make_cases
from editkit.app.contest import Outcome
from editkit.app.judges import Judges, Scores, distances, score
from editkit.metrics.bootstrap import paired_difference
from editkit.metrics.images import mean

COMPARED = ("score", "success", "preservation", "psnr_inside", "psnr_outside")


@dataclass
class Trial:
    """One edit, all that took part, and what the judges said of each variant of their pictures.

    Attributes:
        methods: the entrants that are evaluated, in the order of the table; the others are their baselines.
        split: what the cases are from.
        training: seconds of training by entrant; None where nothing was trained or nobody wrote it down.
        settings: what each method ran with.
        frechet: see `frechet`.
    """

    methods: tuple[str, ...]
    split: str
    cases: Cases
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    training: dict[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    frechet: Mapping[tuple[str, str], float] = field(default_factory=dict)


def frechet(trial: Trial, judges: Judges) -> dict[tuple[str, str], float]:
    """Return each variant's distance to the exact answers for other faces; ("", "") is that of these faces' own answers."""
    cases = trial.cases
    other = "test" if trial.split == "validation" else "validation"
    real = make_cases(cases.edit, other, len(cases), size=cases.images.shape[-1]).truth
    features = {(name, kind): found.features for name, kinds in trial.scores.items() for kind, found in kinds.items()}
    device = next(judges.oracle.parameters()).device
    features["", ""] = score(judges, cases, cases.truth.to(device)).features
    return distances(judges, features, real.to(device))


def summary(trials: Sequence[Trial], **common: Any) -> dict[str, Any]:
    """Return what metrics.json holds: plain values, None where a figure is undefined.

    Args:
        trials: one an edit, of the same methods and split.
        common: what else is true of all of them (seed, device, jobs).
    """
    first = trials[0]
    head = {"methods": first.methods, "split": first.split, "images": len(first.cases), **common}
    return plain({**head, "edits": {trial.cases.edit.name: _entry(trial) for trial in trials}})


def plain(value: Any) -> Any:
    """Return values as strict JSON has them: None for what is not a number."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _entry(trial: Trial) -> dict[str, Any]:
    cases = trial.cases
    methods = {}
    for name, kinds in trial.scores.items():
        outcome = trial.outcomes[name]
        variants = {kind: _figures(found) | {"frechet": trial.frechet[name, kind]} for kind, found in kinds.items()}
        cost = {"seconds": outcome.seconds, "calls": outcome.calls, "training_seconds": trial.training[name]}
        methods[name] = {"variants": variants, **cost}
    return {
        "prompt": cases.edit.prompt,
        "source_prompt": cases.edit.source_prompt,
        "redrawn": sum(cases.changed),
        "region": cases.region.mean().item(),
        "methods": methods,
        "differences": {name: _differences(trial, name) for name in trial.methods},
        "frechet_real": trial.frechet["", ""],
        "settings": trial.settings,
    }


def _figures(found: Scores) -> dict[str, Any]:
    values = {name: _mean(figure) for name, figure in found.figures.items()}
    own = paired_difference(found.figures["score"], found.figures["score"] * 0)
    interval = {"mean": own.mean, "low": own.low, "high": own.high}
    return {"figures": values, "kept": {name: _mean(flags) for name, flags in found.kept.items()}, "score_interval": interval}


def _mean(values: Tensor) -> dict[str, Any]:
    found = mean(values)
    return {"mean": found.value, "count": found.count, "excluded": found.excluded}


def _differences(trial: Trial, method: str) -> dict[str, Any]:
    """Return what a method has above each baseline, by the names of `COMPARED`."""
    raw = {name: kinds["raw"].figures for name, kinds in trial.scores.items()}
    return {other: _difference(raw[method], raw[other]) for other in raw if other not in trial.methods}


def _difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Any]:
    found = {name: paired_difference(mine[name], theirs[name]) for name in COMPARED}
    return {name: {**asdict(one), "above": one.above, "below": one.below} for name, one in found.items()}
