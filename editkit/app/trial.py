"""What one edit's trial showed, as the plain values of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from editkit.app.contest import Outcome
from editkit.app.questions.base import Cases, Questions
from editkit.app.questions.figures import Scores
from editkit.metrics.bootstrap import paired_difference
from editkit.metrics.images import mean


@dataclass
class Trial:
    """One edit, all that took part, and what the judges said of each variant of their pictures.

    Attributes:
        questions: the kind of what is asked.
        methods: the entrants that are evaluated, in the order of the table; the others are their baselines.
        split: what the cases are from.
        training: seconds of training by entrant; None where nothing was trained or nobody wrote it down.
        settings: what each method ran with.
        frechet: see `Questions.distances`.
    """

    questions: Questions
    methods: tuple[str, ...]
    split: str
    cases: Cases
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    training: dict[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    frechet: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def enter(self, name: str, outcome: Outcome, judges: Any, device: Any = "cpu") -> None:
        """Judge what an entrant made, and note both."""
        more = {} if outcome.returned is None else self.questions.of_return(self.cases, outcome.returned)
        self.outcomes[name] = outcome
        self.scores[name] = {}
        for kind, images in outcome.variants.items():
            found = self.questions.score(judges, self.cases, images.to(device))
            figures = found.figures | more
            self.scores[name][kind] = replace(found, figures={figure: figures[figure] for figure in self.questions.figures})

    def close(self, judges: Any) -> None:
        """Measure what takes the pictures of all entrants."""
        kinds = ((name, kind, found.features) for name, kinds in self.scores.items() for kind, found in kinds.items())
        features = {(name, kind): own for name, kind, own in kinds if own is not None}
        self.frechet = self.questions.distances(judges, self.cases, self.split, features)


def summary(trials: Sequence[Trial], **common: Any) -> dict[str, Any]:
    """Return what metrics.json holds: plain values, None where a figure is undefined.

    Args:
        trials: one an edit, of the same methods and split.
        common: what else is true of all of them (split, images, seed, device, jobs).
    """
    first = trials[0]
    about = {"split": first.split, "images": len(first.cases), **common}
    head = {"evaluate": first.questions.name, "methods": first.methods, **about}
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
        variants = {kind: _figures(found) | _far(trial, "frechet", name, kind) for kind, found in kinds.items()}
        cost = {"seconds": outcome.seconds, "calls": outcome.calls, "training_seconds": trial.training[name]}
        methods[name] = {"variants": variants, **cost}
    return {
        **cases.about(),
        "region": cases.region.mean().item(),
        "methods": methods,
        "differences": {name: _differences(trial, name) for name in trial.methods},
        **_far(trial, "frechet_real", "", ""),
        "settings": trial.settings,
    }


def _far(trial: Trial, label: str, *variant: str) -> dict[str, float]:
    """Return the Frechet distance of a variant under a label, where it was measured."""
    return {label: trial.frechet[variant]} if variant in trial.frechet else {}


def _figures(found: Scores) -> dict[str, Any]:
    values = {name: _mean(figure) for name, figure in found.figures.items()}
    own = paired_difference(found.figures["score"], found.figures["score"] * 0)
    interval = {"mean": own.mean, "low": own.low, "high": own.high}
    return {"figures": values, "kept": {name: _mean(flags) for name, flags in found.kept.items()}, "score_interval": interval}


def _mean(values: Tensor) -> dict[str, Any]:
    found = mean(values)
    return {"mean": found.value, "count": found.count, "excluded": found.excluded}


def _differences(trial: Trial, method: str) -> dict[str, Any]:
    """Return what a method has above each baseline, by the names of `Questions.compared`."""
    raw = {name: kinds["raw"].figures for name, kinds in trial.scores.items()}
    others, names = [other for other in raw if other not in trial.methods], trial.questions.compared
    return {other: _difference(raw[method], raw[other], names) for other in others}


def _difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    found = {name: paired_difference(mine[name], theirs[name]) for name in names}
    return {name: {**asdict(one), "above": one.above, "below": one.below} for name, one in found.items()}
