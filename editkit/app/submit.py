"""`editkit submit`: a training or the editing of a folder as a SLURM job, its recipe frozen before it is queued."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit import recipe
from editkit.app import slurm, staged
from editkit.app.continuing import settle
from editkit.app.edit import checked_plan
from editkit.app.jobfile import Cluster, editing, training
from editkit.app.loaded import compose_for
from editkit.app.progress import remark
from editkit.app.runs import active, belongs, read_record, write_record
from editkit.app.submit_options import SubmitEdit, SubmitTrain
from editkit.engine.atomic import write_bytes
from editkit.errors import UsageError, UserError
from editkit.training.plan import Plan

if TYPE_CHECKING:
    from omegaconf import DictConfig

FILE = "job.sbatch"
# Options of edit that a frozen recipe already holds, or that each element of the array has of its own.
FROZEN = ("method", "backbone", "overrides", "conf", "dry_run", "source", "shard", "shards", "output")


@dataclass(frozen=True)
class Job:
    """What is going to be submitted.

    Attributes:
        folder: where its file and its logs go.
        text: of the file.
        runs: the configurations to freeze, by run folder; each is an element of the array if there are several.
        pictures: how many are to be edited; None for training.
        freeze: keeps a configuration in its folder.
    """

    folder: Path
    text: str
    runs: dict[Path, DictConfig]
    pictures: int | None = None
    freeze: Callable[[DictConfig, Path], Any] = recipe.freeze


def submit(job: Job) -> int:
    """Freeze the configurations, write the file, give it to SLURM, say what to type next and return 0.

    Raises:
        UserError: no SLURM here, a run that is queued or running already, a folder of another run, or what sbatch says.
    """
    slurm.check_installed()
    for run in job.runs:
        _check_idle(run)
    for run, cfg in job.runs.items():
        job.freeze(cfg, run)
    file = job.folder / FILE
    (job.folder / "log").mkdir(parents=True, exist_ok=True)  # SLURM does not make it
    write_bytes(file, job.text.encode())
    number = slurm.submit(file)
    for index, run in enumerate(job.runs):
        write_record(run, f"{number}_{index}" if len(job.runs) > 1 else number, job.pictures)
    print(number)
    here = shlex.quote(str(job.folder))
    remark(f"submitted {file} as job {number}; next: editkit jobs {here}, tail -f {here}/log/{number}*.out, scancel {number}")
    return 0


def train_job(options: SubmitTrain) -> Job:
    """Return the job of `editkit submit train`.

    Raises:
        UserError: anything that would stop the training before it starts.
    """
    options = staged.alone(options)
    folder, runs = _swept(options) if options.sweep else _single(options)
    for cfg in runs.values():
        recipe.validate(cfg)
    plain = [recipe.frozen(cfg) for cfg in runs.values()]
    needs = [(Cluster.of(one["cluster"] or {}), Plan(**one["trainer"])) for one in plain]
    cluster, plan = needs[0]
    if any((one[0], one[1].num_nodes, one[1].devices) != (cluster, plan.num_nodes, plan.devices) for one in needs):
        raise UsageError(
            "the runs of a sweep share one job file: sweep neither cluster, nor trainer.num_nodes, nor trainer.devices"
        )
    text = training(cluster, plan, list(runs), name=str(plain[0]["recipe"]), folder=folder, home=Path.cwd())
    return Job(folder, text, runs, freeze=partial(settle, fresh=options.fresh, accept=options.accept_changes))


def edit_job(options: SubmitEdit) -> Job:
    """Return the job of `editkit submit edit`. Its results do not depend on the number of shares.

    Raises:
        UserError: anything that would stop the editing before a model is loaded.
    """
    if options.source:
        cfg = recipe.thaw(options.source)
    else:
        invariant = replace(options, overrides=["engine.batch_invariant=true", *options.overrides])
        cfg = compose_for(_on_cluster(invariant), "submit edit")
    recipe.validate(cfg)
    name = str(options.method or cfg.recipe)
    planned = checked_plan(options, cfg, name)
    if planned.folder is None:
        raise UsageError("submit edit shares a folder of pictures: --image must be one; edit a single picture with editkit edit")
    plain, folder = recipe.frozen(cfg), planned.folder
    pictures = len(planned.jobs) + len(planned.broken)
    words = ["edit", f"--from={folder}", *typed(options), f"--output={folder}"]
    cluster, accelerator = Cluster.of(plain["cluster"] or {}), plain["trainer"]["accelerator"]
    shards = min(options.shards, pictures)
    text = editing(cluster, words, shards, accelerator=accelerator, name=f"edit-{name}", folder=folder, home=Path.cwd())
    return Job(folder, text, {folder: cfg}, pictures)


def typed(options: Any) -> list[str]:
    """Return options as they are typed on the command line, without those of a frozen recipe and those left as they are."""
    words = []
    for one in fields(options):
        value = getattr(options, one.name)
        if one.name not in FROZEN and value not in (None, [], one.default):
            flag = one.metadata["name"] or f"--{one.name.replace('_', '-')}"
            words += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    return words


def _single(options: SubmitTrain) -> tuple[Path, dict[Path, DictConfig]]:
    cfg = recipe.thaw(options.source) if options.source else _composed(options)
    folder = Path(cfg.run_dir)
    return folder, {folder: cfg}


def _swept(options: SubmitTrain) -> tuple[Path, dict[Path, DictConfig]]:
    """Return the sweep's folder and its runs: a folder for each combination, named after what varies."""
    combinations = recipe.sweep(options.overrides)
    varying = [key for key in combinations[0] if len({one[key] for one in combinations}) > 1]
    fixed = [text for key, text in combinations[0].items() if key not in varying]
    folder = options.run_dir or Path(f"{_composed(replace(options, overrides=fixed)).run_dir}-sweep")
    runs = {}
    for one in combinations:
        place = folder / ",".join(re.sub(r"[^\w.=+-]+", "-", one[key].removeprefix(_section(key))) for key in varying)
        if place in runs:
            raise UsageError(f"two runs of the sweep would be called {place}; submit them one by one, each with its -o")
        runs[place] = _composed(replace(options, overrides=list(one.values()), run_dir=place))
    return folder, runs


def _section(key: str) -> str:
    """Return the part of a key that the names of a sweep's folders leave out: method.l1_weight -> "method."."""
    return key[: key.rfind(".") + 1]


def _composed(options: SubmitTrain) -> DictConfig:
    return recipe.compose(_on_cluster(options).recipe_overrides(), prompts=options.texts(), conf_dirs=options.conf)


def _on_cluster(options: Any) -> Any:
    """Return the options with a cluster chosen."""
    chosen = any(text.startswith("cluster=") for text in options.overrides)
    return options if chosen else replace(options, overrides=["cluster=slurm", *options.overrides])


def _check_idle(run: Path) -> None:
    record = read_record(run)
    for job, state in slurm.states([record["id"]] if record else []).items():
        if belongs(job, str(record["id"])) and active(state):
            raise UserError(f"{run} is job {job} already ({state}): see editkit jobs {run}, or scancel {job} first")
