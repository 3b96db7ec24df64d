"""What `editkit train` does: one run from its recipe to its export, or on from where it stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import yaml
from safetensors import SafetensorError

from editkit import recipe
from editkit.app import slurm, staged
from editkit.app.continuing import settle, taken_back_unless_it_fits
from editkit.app.options import TrainOptions
from editkit.app.progress import remark
from editkit.errors import UserError
from editkit.training.fit import Outcome, fit
from editkit.training.method import Method
from editkit.training.plan import Plan
from editkit.training.randomness import derive, seed_all
from editkit.training.rundir import VARIABLE, RunDir, is_first_process

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Stopped(UserError):
    """A signal ended the run early; everything is saved."""


class Requeued(Stopped):
    """The same, in a SLURM job that starts again and continues; no failure."""

    exit_code = 0


@dataclass(frozen=True)
class Trained:
    """What a run left behind.

    Attributes:
        method: holds the trained weights; its stepper has the counts and the moving average.
        exported: the files under run.export.
    """

    run: RunDir
    method: Method
    outcome: Outcome
    exported: list[Path]


def train(options: TrainOptions) -> int:
    """Train as typed, print where everything is, and return 0.

    Raises:
        UserError: anything the user can mend; Stopped after a signal.
    """
    if options.dry_run:
        print(staged.resolved(options), end="")
        return 0
    if not _joins() and (options.stage or staged.stages_of(options)):
        return train_stages(options)
    cfg = configuration(options)
    with taken_back_unless_it_fits(RunDir(Path(cfg.run_dir))):
        result = run(cfg)
    if is_first_process():
        done = result.outcome
        print(f"trained {done.new_steps} steps in {done.seconds:.0f} s; the run has {done.steps} steps and {done.images} images")
        for path in result.exported:
            print(f"wrote {path}")
    return 0


def train_stages(options: TrainOptions) -> int:
    """Train the stages of a recipe that are missing, or the one that was named, in their order; return 0.

    Raises:
        UserError: as `train`.
    """
    for one in staged.to_train(options):
        remark(f"editkit: {one.method}")
        train(one)
    if folder := staged.freeze_whole(options):
        print(f"edit with editkit edit --from {folder}")
    return 0


def _joins() -> bool:
    """Say whether this process was started for a run that another one decided on."""
    return VARIABLE in os.environ and not is_first_process()


def configuration(options: TrainOptions) -> DictConfig:
    """Return the run's configuration, frozen in its run directory.

    The first process decides and writes it; the others, which a launcher starts with the same command, read it there.
    """
    announced = os.environ.get(VARIABLE)
    if announced and _joins():
        return recipe.thaw(announced)
    source = options.source or announced
    if source:
        cfg = recipe.thaw(source)
        if options.source and options.source.is_dir():
            cfg.run_dir = str(options.source)  # the folder may have been moved
        return cfg
    cfg = recipe.compose(options.recipe_overrides(), prompts=options.texts(), conf_dirs=options.conf)
    if is_first_process():
        settle(cfg, cfg.run_dir, fresh=options.fresh and not slurm.restarted(), accept=options.accept_changes)
    return cfg


def run(cfg: DictConfig) -> Trained:
    """Train the configuration in its run directory and export; a finished run is only exported again.

    Raises:
        Stopped: after a signal, with everything saved; Requeued if the job around it starts again.
    """
    with _requeued_outside_training():
        return _run(cfg)


def _run(cfg: DictConfig) -> Trained:
    plain = recipe.frozen(cfg)
    place = RunDir(Path(plain["run_dir"]))
    plan = Plan(**plain["trainer"])
    seed = int(plain["seed"])
    dataset = recipe.build(cfg, "data").train_dataset()
    seed_all(derive(seed, "method"))
    method: Method = recipe.build(cfg, "method")
    method.provenance = provenance(plain)
    loggers = [recipe.build(cfg, "logger")] if plain.get("logger") else []
    title = str(plain.get("recipe") or "train")
    outcome = fit(method, dataset, plan, place, seed=seed, config=yaml.safe_dump(plain), title=title, loggers=loggers)
    if outcome.stopped_by:
        stop(f"stopped by {outcome.stopped_by} at step {outcome.steps}, saved in {place.path}", outcome.stopped_by)
    return Trained(place, method, outcome, export(method, place) if is_first_process() else [])


def stop(what: str, caught: str) -> NoReturn:
    """Raise Stopped, or Requeued once the first process has put the job around it back into SLURM's queue."""
    left = slurm.requeues_left()
    if not left or caught == "SIGINT":
        used = ", and its job has been queued again as often as cluster.requeues allows" if slurm.in_job() else ""
        raise Stopped(f"{what}; the same command continues{used}")
    if not is_first_process():
        raise Requeued("")
    if slurm.ending():
        raise Requeued(f"{what}; SLURM has decided on the job already")
    remark(f"editkit: {what}; queued again, {left - 1} more times at most")  # first, for the request ends this process
    refusal = slurm.requeue()
    if refusal:
        raise Stopped(f"{what}; {refusal}; the same command continues")
    raise Requeued("")


@contextlib.contextmanager
def _requeued_outside_training() -> Iterator[None]:
    """In a SLURM job that is queued again, let its signals do so at once while models are built or exported too.

    Training itself catches them and saves first.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if slurm.ending():  # the signal is what follows from a request to queue the job again
            raise Requeued("")
        name = signal.Signals(number).name
        stop(f"stopped by {name} outside training, nothing is lost", name)

    ours = slurm.in_job() and threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGUSR2) if ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def export(method: Method, place: RunDir) -> list[Path]:
    """Write the method's export beside the old one, then put it in its place; return the files' paths."""
    draft = place.export.with_name(".export.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        files = method.export(draft)
        shutil.rmtree(place.export, ignore_errors=True)
        draft.replace(place.export)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"cannot write {place.export} ({error}); training is saved, the same command tries again") from error
    return [place.export / file.relative_to(draft) for file in files]


def provenance(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the cards of this run's exports should say about it."""
    prompts = {key: plain["method"][key] for key in ("prompt", "source_prompt") if isinstance(plain["method"].get(key), str)}
    card = {key: plain["card"][key] for key in ("family", "paper", "licence") if key in plain["card"]}
    return {"recipe": plain.get("recipe"), "seed": plain["seed"], "torch": torch.__version__, **card, **prompts}
