"""`editkit evaluate`: score methods on pictures whose edits have an exact answer, beside baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from editkit.app import contest, tradeoff
from editkit.app.device import device_of
from editkit.app.entrants import asked_of, check_baselines, chosen_edits, composed, load_baselines, load_methods
from editkit.app.loaded import Loaded, short_name
from editkit.app.markdown import check_marks, insert
from editkit.app.options import EvaluateOptions
from editkit.app.outcomes import kept_or
from editkit.app.processes import spread
from editkit.app.progress import Progress
from editkit.app.questions import Questions
from editkit.app.questions.base import Edit
from editkit.app.tables import markdown_table, terminal_table
from editkit.app.trial import Trial, summary
from editkit.app.verdict import write
from editkit.data.files import check_writable
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

IMAGES = 256


def evaluate(options: EvaluateOptions) -> int:
    """Run the command: metrics.json, images.csv, table.md, report.html and a sheet per edit; return 0.

    All are written anew after each edit, so that what is done stays where a later edit fails.
    A sweep adds tradeoff.csv and tradeoff.svg.

    Raises:
        UserError: unknown edits or baselines, weights that are missing, a folder that cannot be written, jobs on a GPU.
    """
    recipes = composed(options)
    questions = asked_of(recipes)
    if options.update is not None:
        check_marks(options.update, questions.mark)
    check_baselines(options, questions)
    edits = chosen_edits(options, questions, recipes)
    jobs = count_jobs(options, edits)
    names = "-".join(short_name(str(one.method)) for one in options.recipes())
    output = options.output or Path("runs") / f"evaluate-{names}-{options.split}"
    check_writable(output)
    for _, alike in groupby(edits, lambda edit: edit.prompt):
        load_methods(options, recipes, next(alike))  # what is missing shows now, not hours later
    trials: list[Trial] = []
    for trial in trials_of(options, questions, recipes, edits, jobs):
        trials.append(trial)
        results = results_of(options, trials, jobs=jobs)
        paths = write(output, results, trials)
    if options.sweep:
        paths += tradeoff.write(output, results)
    if options.update is not None:
        insert(options.update, questions.mark, markdown_table(results))
    Console(soft_wrap=True).print(terminal_table(results))
    for path in paths:
        print(path)
    return 0


def results_of(options: EvaluateOptions, trials: Sequence[Trial], *, jobs: int = 1) -> dict[str, Any]:
    """Return what metrics.json holds of the trials of some edits."""
    return summary(trials, **conditions(options), device=str(device_of(options.device)), jobs=jobs)


def conditions(options: EvaluateOptions) -> dict[str, Any]:
    """Return what results depend on besides the methods and edits, as metrics.json has it."""
    chosen = {name: getattr(options, name) for name in ("split", "seed", "steps", "dtype", "baselines")}
    return {**chosen, "images": options.images or IMAGES}


def count_jobs(options: EvaluateOptions, edits: Sequence[Edit]) -> int:
    """Return how many processes to use, at most one an edit.

    Raises:
        UsageError: several on a GPU.
    """
    if options.jobs > 1 and (device := device_of(options.device)).type != "cpu":
        raise UsageError(f"--jobs {options.jobs} on {device}: a GPU makes one edit at a time; leave --jobs out")
    return min(options.jobs, len(edits))


def trials_of(
    options: EvaluateOptions,
    questions: Questions,
    recipes: Mapping[str, DictConfig],
    edits: Sequence[Edit],
    jobs: int = 1,
    *,
    baselines: Path | None = None,
) -> Iterator[Trial]:
    """Yield the trial of each edit, made here or, for several jobs, in as many processes, each with its own inversions.

    Args:
        baselines: folder where what baselines make is kept for other evaluations; None keeps nothing.
    """
    with TemporaryDirectory(prefix="editkit-inversions-") as folder:
        if jobs == 1:
            yield from held(options, questions, recipes, edits, folder, baselines)
            return
        shares = [(edits[job::jobs], f"{folder}/{job}") for job in range(jobs)]
        with Progress(total=len(edits), unit="edits") as progress:
            found = spread(partial(held, options, questions, recipes), shares, tick=progress.advance)
    yield from (found[place % jobs][place // jobs] for place in range(len(edits)))


def held(
    options: EvaluateOptions,
    questions: Questions,
    recipes: Mapping[str, DictConfig],
    edits: Sequence[Edit],
    folder: Path | str,
    baselines: Path | None = None,
) -> Iterator[Trial]:
    """Yield the trial of each edit; inversions that several methods and edits need are kept in `folder`."""
    judges, cache = questions.load_judges(device_of(options.device)), InversionCache(folder)
    for _, alike in groupby(edits, lambda edit: edit.prompt):  # which the same trained parts make
        some = list(alike)
        methods = load_methods(options, recipes, some[0])
        others = load_baselines(options, questions, next(iter(recipes.values())), methods, some[0])
        settings = {name: one.provenance for name, one in methods.items()}
        for edit in some:
            size = next(iter(methods.values())).size[0]
            cases = questions.cases(edit, options.split, options.images or IMAGES, size=size)
            trial = Trial(questions, tuple(methods), options.split, cases, settings=settings)
            hold(trial, methods | others, judges, options, cache, baselines)
            yield trial


def hold(
    trial: Trial,
    entrants: Mapping[str, Loaded | None],
    judges: Any,
    options: EvaluateOptions,
    cache: InversionCache,
    baselines: Path | None = None,
) -> None:
    """Let every entrant (None: no edit at all) make the edit, judge what they made, and enter it all into the trial."""
    cases, device = trial.cases, device_of(options.device)
    ways = 1 if cases.back(cases.images) is None else 2
    sizes = [1 if loaded.editor.per_image else loaded.batch_size for loaded in entrants.values() if loaded]
    with Progress(total=ways * sum(-(-len(cases) // size) for size in sizes), unit="batches") as progress:
        for name, loaded in entrants.items():
            if loaded is None:
                outcome = contest.no_edit(cases)
            else:
                knobs: dict[str, Any] = {"batch_size": loaded.batch_size, "steps": options.steps, "seed": options.seed}
                make = partial(contest.run, loaded.editor, cases, **knobs, cache=cache, tick=progress.advance)
                kept = None if name in trial.methods else baselines
                outcome = make() if kept is None else kept_or(kept, loaded, cases, {"name": name, **knobs}, make)
            trial.training[name] = None if loaded is None else loaded.training_seconds
            trial.enter(name, outcome, judges, device)
    trial.close(judges)
