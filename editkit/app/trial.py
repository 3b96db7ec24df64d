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
        method: the entrant that is evaluated; the others are its baselines.
        split: what the cases are from.
        training: seconds of training by entrant; None where nothing was trained or nobody wrote it down.
        settings: what the method ran with.
    """

    method: str
    split: str
    cases: Cases
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    training: dict[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mine(self) -> Scores:
        """The scores of the method itself, as it returned its pictures."""
        return self.scores[self.method]["raw"]


def summary(trials: Sequence[Trial], judges: Judges, **common: Any) -> dict[str, Any]:
    """Return what metrics.json holds: plain values, None where a figure is undefined.

    Args:
        trials: one an edit, of the same method and split.
        common: what else is true of all of them (seed, device).
    """
    first = trials[0]
    head = {"method": first.method, "split": first.split, "images": len(first.cases), **common}
    return plain({**head, "edits": {trial.cases.edit.name: _entry(trial, judges) for trial in trials}})


def plain(value: Any) -> Any:
    """Return values as strict JSON has them: None for what is not a number."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _entry(trial: Trial, judges: Judges) -> dict[str, Any]:
    cases = trial.cases
    far = _frechet(trial, judges)
    methods = {}
    for name, kinds in trial.scores.items():
        outcome = trial.outcomes[name]
        variants = {kind: _figures(found) | {"frechet": far[name, kind]} for kind, found in kinds.items()}
        cost = {"seconds": outcome.seconds, "calls": outcome.calls, "training_seconds": trial.training[name]}
        methods[name] = {"variants": variants, **cost}
    return {
        "prompt": cases.edit.prompt,
        "source_prompt": cases.edit.source_prompt,
        "redrawn": sum(cases.changed),
        "region": cases.region.mean().item(),
        "methods": methods,
        "differences": {name: _differences(trial, name) for name in methods if name != trial.method},
        "frechet_real": far["", ""],
        "settings": trial.settings,
    }


def _frechet(trial: Trial, judges: Judges) -> dict[tuple[str, str], float]:
    """Return each variant's distance to the exact answers for other faces; ("", "") is that of these faces' own answers."""
    cases = trial.cases
    other = "test" if trial.split == "validation" else "validation"
    real = make_cases(cases.edit, other, len(cases), size=cases.images.shape[-1]).truth
    features = {(name, kind): found.features for name, kinds in trial.scores.items() for kind, found in kinds.items()}
    device = next(judges.oracle.parameters()).device
    features["", ""] = score(judges, cases, cases.truth.to(device)).features
    return distances(judges, features, real.to(device))


def _figures(found: Scores) -> dict[str, Any]:
    values = {name: _mean(figure) for name, figure in found.figures.items()}
    own = paired_difference(found.figures["score"], found.figures["score"] * 0)
    interval = {"mean": own.mean, "low": own.low, "high": own.high}
    return {"figures": values, "kept": {name: _mean(flags) for name, flags in found.kept.items()}, "score_interval": interval}


def _mean(values: Tensor) -> dict[str, Any]:
    found = mean(values)
    return {"mean": found.value, "count": found.count, "excluded": found.excluded}


def _differences(trial: Trial, baseline: str) -> dict[str, Any]:
    mine, theirs = trial.mine.figures, trial.scores[baseline]["raw"].figures
    found = {name: paired_difference(mine[name], theirs[name]) for name in COMPARED}
    return {name: {**asdict(one), "above": one.above, "below": one.below} for name, one in found.items()}
