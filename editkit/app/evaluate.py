"""`editkit evaluate`: score methods on faces whose edits have an exact answer, beside baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from editkit.app import contest
from editkit.app.artefacts import bundled, by_method, choose
from editkit.app.cases import make_cases
from editkit.app.device import device_of
from editkit.app.judges import Judges, load_judges, score
from editkit.app.loaded import Loaded, assets_folder, compose_for, load_editor, short_name
from editkit.app.markdown import insert
from editkit.app.options import EvaluateOptions
from editkit.app.processes import spread
from editkit.app.progress import Progress
from editkit.app.tables import markdown_table, terminal_table
from editkit.app.trial import Trial, frechet, summary
from editkit.app.verdict import write
from editkit.data.files import check_writable
from editkit.data.toyworld.world import EDITS, Edit, find_edit
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError, UserError, suggestion
from editkit.recipe import compose
from editkit.types import EditRequest

if TYPE_CHECKING:
    from omegaconf import DictConfig

IMAGES = 256
STANDARD = ("smiling", "angry", "old", "with glasses")
NO_EDIT = "no-edit"
BASELINES = (NO_EDIT, "reconstruction", "clip-guided", "sdedit")


def evaluate(options: EvaluateOptions) -> int:
    """Run the command: metrics.json, images.csv, table.md, report.html and a sheet per edit; return 0.

    Raises:
        UserError: unknown edits or baselines, weights that are missing, a folder that cannot be written, jobs on a GPU.
    """
    recipes = composed(options)
    if options.images is not None and options.images < 2:
        raise UsageError(f"--images {options.images}: at least 2 images are needed")
    check_baselines(options)
    folders = {name: assets_folder(str(cfg.method.get("_target_", ""))) for name, cfg in recipes.items()}
    edits = chosen_edits(options, folders)
    jobs = count_jobs(options, edits)
    output = options.output or Path("runs") / f"evaluate-{'-'.join(recipes)}-{options.split}"
    check_writable(output)
    for edit in edits:
        load_methods(options, recipes, edit)  # what is missing shows now, not hours later
    trials = trials_of(options, recipes, edits, jobs)
    results = summary(trials, seed=options.seed, device=str(device_of(options.device)), jobs=jobs)
    paths = write(output, results, trials)
    if options.update is not None:
        insert(options.update, "results", markdown_table(results))
    Console(soft_wrap=True).print(terminal_table(results))
    for path in paths:
        print(path)
    return 0


def composed(options: EvaluateOptions) -> dict[str, DictConfig]:
    """Return the configuration of each method by its short name, in the order typed.

    Raises:
        UsageError: no method, two of one name; and what `compose` raises.
    """
    named = [(short_name(str(one.method)), compose_for(one, "evaluate")) for one in options.recipes()]
    if len(dict(named)) < len(named):
        raise UsageError(f"two methods of one name, {' '.join(options.methods)}: evaluate them one by one")
    return dict(named)


def count_jobs(options: EvaluateOptions, edits: Sequence[Edit]) -> int:
    """Return how many processes to use, at most one an edit.

    Raises:
        UsageError: several on a GPU.
    """
    if options.jobs > 1 and (device := device_of(options.device)).type != "cpu":
        raise UsageError(f"--jobs {options.jobs} on {device}: a GPU makes one edit at a time; leave --jobs out")
    return min(options.jobs, len(edits))


def trials_of(options: EvaluateOptions, recipes: Mapping[str, DictConfig], edits: Sequence[Edit], jobs: int) -> list[Trial]:
    """Return the trial of each edit, made here or, for several jobs, in as many processes, each with its own inversions."""
    with TemporaryDirectory(prefix="editkit-inversions-") as folder:
        if jobs == 1:
            return list(held(options, recipes, edits, folder))
        shares = [(edits[job::jobs], f"{folder}/{job}") for job in range(jobs)]
        with Progress(total=len(edits), unit="edits") as progress:
            found = spread(partial(held, options, recipes), shares, tick=progress.advance)
    return [found[place % jobs][place // jobs] for place in range(len(edits))]


def held(
    options: EvaluateOptions, recipes: Mapping[str, DictConfig], edits: Sequence[Edit], folder: Path | str
) -> Iterator[Trial]:
    """Yield the trial of each edit; inversions that several methods and edits need are kept in `folder`."""
    judges, cache = load_judges(device_of(options.device)), InversionCache(folder)
    backbone = next(iter(recipes.values()))
    for edit in edits:
        methods = load_methods(options, recipes, edit)
        others = {name: _load_baseline(options, backbone, name, edit) for name in baselines(options, methods, edit)}
        size = next(iter(methods.values())).size[0]
        cases = make_cases(edit, options.split, options.images or IMAGES, size=size)
        trial = Trial(tuple(methods), options.split, cases, settings={name: one.provenance for name, one in methods.items()})
        hold(trial, methods | others, judges, options, cache)
        yield trial


def hold(
    trial: Trial, entrants: Mapping[str, Loaded | None], judges: Judges, options: EvaluateOptions, cache: InversionCache
) -> None:
    """Let every entrant (None: no edit at all) make the edit, judge what they made, and enter it all into the trial."""
    cases, device = trial.cases, device_of(options.device)
    sizes = [1 if loaded.editor.per_image else loaded.batch_size for loaded in entrants.values() if loaded]
    with Progress(total=sum(-(-len(cases) // size) for size in sizes), unit="batches") as progress:
        for name, loaded in entrants.items():
            if loaded is None:
                outcome = contest.no_edit(cases)
            else:
                knobs: dict[str, Any] = {"batch_size": loaded.batch_size, "steps": options.steps, "seed": options.seed}
                outcome = contest.run(loaded.editor, cases, **knobs, cache=cache, tick=progress.advance)
            trial.outcomes[name] = outcome
            trial.training[name] = None if loaded is None else _training_seconds(loaded)
            trial.scores[name] = {kind: score(judges, cases, images.to(device)) for kind, images in outcome.variants.items()}
    trial.frechet = frechet(trial, judges)


def weights_of(options: EvaluateOptions, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the weights that the user gave each method: all of them to a single one, METHOD=PATH to several."""
    (first, *others) = names
    return by_method(options.weights, names) if others else {first: options.weights}


def chosen_edits(options: EvaluateOptions, folders: Mapping[str, str]) -> list[Edit]:
    """Return the edits that the user named, or else all that one of the methods would choose, the standard ones first.

    Args:
        folders: of each method's bundled artefacts, by its name.

    Raises:
        UsageError: no such edit; UserError: --weights for a text that is no edit of the toy faces.
    """
    if options.edits:
        return list({edit.name: edit for edit in map(find_edit, options.edits)}.values())
    weights = weights_of(options, list(folders))
    found = {edit.name: edit for name, folder in folders.items() for edit in _edits_of(folder, weights[name])}
    return [found[name] for name in dict.fromkeys([*STANDARD, *EDITS]) if name in found]


def _edits_of(folder: str, weights: Sequence[str]) -> list[Edit]:
    """Return all edits that a method has trained parts for; the standard ones if it has none for a text."""
    parts = [part for part in (choose(folder, weights) if weights else bundled(folder)) if part.target]
    if not parts:
        return [EDITS[name] for name in STANDARD]
    found = [edit for edit in EDITS.values() if any(part.answers(edit.prompt) for part in parts)]
    if not found:
        texts = ", ".join(repr(part.target) for part in parts)
        raise UserError(
            f"the weights are for {texts}, which is no edit of the toy faces with a known answer: name one with --edit"
        )
    return found


def check_baselines(options: EvaluateOptions) -> None:
    """Raise a UsageError for a baseline that does not exist."""
    for name in options.baselines:
        if name not in (*BASELINES, "none"):
            listed = f"{', '.join(BASELINES)}; none for none"
            raise UsageError(f"no baseline {name!r}.{suggestion(name, BASELINES)} There are: {listed}")


def load_methods(options: EvaluateOptions, recipes: Mapping[str, DictConfig], edit: Edit) -> dict[str, Loaded]:
    """Return each method, ready for the edit, by name.

    Raises:
        UserError: no weights for it, named with the method and the edit; methods for pictures of different sizes.
    """
    loaded, weights = {}, weights_of(options, list(recipes))
    for name, cfg in recipes.items():
        chosen = {"weights": weights[name], "device": options.device, "dtype": options.dtype}
        try:
            loaded[name] = load_editor(cfg, name, prompt=edit.prompt, **chosen)
        except UserError as error:
            raise type(error)(f"{name} for the edit {edit.name!r}: {error}") from error
    sizes = {one.size for one in loaded.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {one.size[0]} x {one.size[1]}" for name, one in loaded.items())
        raise UsageError(f"the methods edit pictures of different sizes ({listed}): evaluate them one by one")
    return loaded


def baselines(options: EvaluateOptions, methods: Mapping[str, Loaded], edit: Edit) -> list[str]:
    """Return the baselines: those that the user named, or all that apply to the first method's backbone."""
    if options.baselines:
        return [name for name in dict.fromkeys(options.baselines) if name not in ("none", *methods)]
    reads = _reads_text(next(iter(methods.values())), edit)
    return [name for name in BASELINES if name not in methods and (name != "sdedit" or reads)]


def _load_baseline(options: EvaluateOptions, cfg: DictConfig, name: str, edit: Edit) -> Loaded | None:
    """Return a baseline on the backbone of a method's configuration; None for no edit at all."""
    if name == NO_EDIT:
        return None
    other = compose([f"recipe={name}"], conf_dirs=options.conf)
    other.backbone, other.engine = cfg.backbone, cfg.engine
    return load_editor(other, name, prompt=edit.prompt, device=options.device, dtype=options.dtype)


def _reads_text(loaded: Loaded, edit: Edit) -> bool:
    backbone = getattr(loaded.editor, "backbone", None)
    return backbone is not None and backbone.condition(EditRequest("", prompt=edit.prompt)) is not None


def _training_seconds(loaded: Loaded) -> float | None:
    times = [part.card.get("training_seconds") for part in loaded.targets]
    return None if not times or None in times else float(sum(times))
