"""`editkit evaluate`: score a method on faces whose edits have an exact answer, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from editkit.app import contest
from editkit.app.artefacts import bundled, choose
from editkit.app.cases import make_cases
from editkit.app.device import device_of
from editkit.app.judges import Judges, load_judges, score
from editkit.app.loaded import Loaded, assets_folder, compose_for, load_editor, short_name
from editkit.app.markdown import insert
from editkit.app.options import EvaluateOptions
from editkit.app.progress import Progress
from editkit.app.tables import markdown_table, terminal_table
from editkit.app.trial import Trial, summary
from editkit.app.verdict import write
from editkit.data.files import check_writable
from editkit.data.toyworld.world import EDITS, Edit, find_edit
from editkit.engine.cache import InversionCache
from editkit.errors import UsageError, UserError, suggestion
from editkit.recipe import compose
from editkit.types import EditRequest

IMAGES = 256
STANDARD = ("smiling", "angry", "old", "with glasses")
NO_EDIT = "no-edit"
BASELINES = (NO_EDIT, "reconstruction", "clip-guided", "sdedit")


def evaluate(options: EvaluateOptions) -> int:
    """Run the command: metrics.json, images.csv, table.md, report.html and a sheet per edit; return 0.

    Raises:
        UserError: unknown edits or baselines, weights that are missing, a folder that cannot be written.
    """
    cfg = compose_for(options, "evaluate")
    name, count = short_name(str(options.method)), options.images or IMAGES
    if count < 2:
        raise UsageError(f"--images {options.images}: at least 2 images are needed")
    check_baselines(options)
    edits = chosen_edits(options, assets_folder(str(cfg.method.get("_target_", ""))))
    output = options.output or Path("runs") / f"evaluate-{name}-{options.split}"
    check_writable(output)
    judges = load_judges(device_of(options.device))
    trials = []
    with TemporaryDirectory(prefix="editkit-inversions-") as folder:
        cache = InversionCache(folder)
        for edit in edits:
            own = load_editor(cfg, name, weights=options.weights, prompt=edit.prompt, device=options.device, dtype=options.dtype)
            trial = Trial(name, options.split, make_cases(edit, options.split, count, size=own.size[0]), settings=own.provenance)
            entrants = {name: own} | {other: _load_baseline(options, cfg, other, edit) for other in baselines(options, own, edit)}
            hold(trial, entrants, judges, options, cache)
            trials.append(trial)
    results = summary(trials, judges, seed=options.seed, device=str(device_of(options.device)))
    paths = write(output, results, trials)
    if options.update is not None:
        insert(options.update, "results", markdown_table(results))
    Console(soft_wrap=True).print(terminal_table(results))
    for path in paths:
        print(path)
    return 0


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


def chosen_edits(options: EvaluateOptions, folder: str) -> list[Edit]:
    """Return the edits that the user named, or all that the method has trained parts for, or the standard ones.

    Raises:
        UsageError: no such edit; UserError: --weights for a text that is no edit of the toy faces.
    """
    if options.edits:
        return [find_edit(name) for name in dict.fromkeys(options.edits)]
    parts = [part for part in (choose(folder, options.weights) if options.weights else bundled(folder)) if part.target]
    if not parts:
        return [EDITS[name] for name in STANDARD]
    found = [edit for edit in EDITS.values() if any(part.answers(edit.prompt) for part in parts)]
    if not found:
        texts = ", ".join(repr(part.target) for part in parts)
        raise UserError(
            f"the weights are for {texts}, which is no edit of the toy faces with a known answer: name one with --edit"
        )
    return sorted(found, key=lambda edit: STANDARD.index(edit.name) if edit.name in STANDARD else len(STANDARD))


def check_baselines(options: EvaluateOptions) -> None:
    """Raise a UsageError for a baseline that does not exist."""
    for name in options.baselines:
        if name not in (*BASELINES, "none"):
            listed = f"{', '.join(BASELINES)}; none for none"
            raise UsageError(f"no baseline {name!r}.{suggestion(name, BASELINES)} There are: {listed}")


def baselines(options: EvaluateOptions, loaded: Loaded, edit: Edit) -> list[str]:
    """Return the baselines to put beside a method: those that the user named, or all that apply to its backbone."""
    own = short_name(loaded.name)
    if options.baselines:
        return [name for name in dict.fromkeys(options.baselines) if name not in ("none", own)]
    return [name for name in BASELINES if name != own and (name != "sdedit" or _reads_text(loaded, edit))]


def _load_baseline(options: EvaluateOptions, cfg: Any, name: str, edit: Edit) -> Loaded | None:
    """Return a baseline on the backbone that the method uses."""
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
