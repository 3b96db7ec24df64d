"""`editkit edit`: one picture or a folder of them through a method, and back into the photographs."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from editkit.app.device import DTYPES, device_of
from editkit.app.inputs import ALWAYS, check_fit, check_inputs, subject
from editkit.app.loaded import compose_for, load_editor, short_name
from editkit.app.manifest import list_name
from editkit.app.numbers import check_numbers
from editkit.app.options import EditOptions
from editkit.app.pace import Pace, pace
from editkit.app.processes import spread
from editkit.app.progress import Progress, remark
from editkit.app.stages import Editing, Settled, outputs, settled
from editkit.app.worklist import Plan, plan
from editkit.data.files import check_replaceable, check_writable
from editkit.engine.gpus import peak_of
from editkit.errors import UsageError
from editkit.recipe import thaw

if TYPE_CHECKING:
    from omegaconf import DictConfig


def edit_images(options: EditOptions) -> int:
    """Run the command and return its exit code: 0 if every picture was edited, 1 if some of a folder failed.

    What can be wrong with the command itself is found before a model is loaded, and nothing is written before that.

    Raises:
        UserError: wrong options, inputs or weights; for a single picture also whatever is wrong with it.
    """
    cfg, planned = _planned(options)
    if planned.folder is not None:
        return _edit_folder(options, cfg, planned, planned.folder)
    job = planned.jobs[0]
    with Progress(total=1) as progress:
        editing = _loaded(options, cfg, planned)
        editing.begin(progress.note)
        editing.write(job, editing.work([editing.read(job)])[0])
        progress.wrote(outputs(job, options))
    return 0


def _edit_folder(options: EditOptions, cfg: DictConfig, planned: Plan, folder: Path) -> int:
    """Edit what is not done yet, here or in several processes; return 1 if some pictures failed."""
    began = time.monotonic()
    count, listed = len(planned.jobs) + len(planned.broken), list_name(options.shard if options.jobs == 1 else "*")
    with Progress(total=count) as progress:
        if options.jobs == 1:
            editing = _loaded(options, cfg, planned)
            editing.begin(progress.note)
            found = [list(progress.counted(settled(editing, planned, folder)))]
            progress.note(editing.pace.line(time.monotonic() - began))
        else:
            found = spread(_settled_share, shares(options), tick=progress.advance)
            progress.note(pace(sum(one.anew for share in found for one in share), time.monotonic() - began))
    failed = {one.key: one.reason for share in found for one in share if one.reason is not None}
    progress.summary(folder, done=count - len(failed), failed=failed, listed=listed)
    return 1 if failed else 0


def shares(options: EditOptions) -> list[tuple[EditOptions, bool]]:
    """Return the options of each process, with its share of the folder and of several GPUs one, and whether it is the first.

    Raises:
        UsageError: more processes than GPUs.
    """
    count, device = options.jobs, device_of(options.device)
    if device.type != "cpu" and (device.index is not None or count > torch.cuda.device_count()):
        raise UsageError(f"--jobs {count} on {options.device or device}: each GPU takes one process, and --device no number")
    index, of = (int(part) for part in (options.shard or "0/1").split("/"))
    places = [None if device.type == "cpu" else f"{device.type}:{job}" for job in range(count)]
    names = [f"{index + of * job}/{of * count}" for job in range(count)]
    return [
        (replace(options, jobs=1, shard=name, device=place or options.device), name == names[0])
        for name, place in zip(names, places, strict=True)
    ]


def _settled_share(options: EditOptions, first: bool) -> Iterator[Settled]:
    """Edit a share of a folder in a process of its own; only the first says what holds for all."""
    cfg, planned = _planned(options)
    assert planned.folder is not None
    editing = _loaded(options, cfg, planned)
    if first:
        editing.begin(remark)
    yield from settled(editing, planned, planned.folder)


def _planned(options: EditOptions) -> tuple[DictConfig, Plan]:
    """Return the configuration and the jobs, or the share of them that is asked for."""
    cfg = thaw(options.source) if options.source else compose_for(options, "edit")
    planned = checked_plan(options, cfg, str(options.method or cfg.recipe))
    if options.shard is not None:
        planned = planned.share(options.shard)
    if planned.folder is None and options.jobs > 1:
        raise UsageError(f"--jobs {options.jobs} share out a folder, but --image is one picture")
    if planned.folder is None:
        job = planned.jobs[0]  # a bad picture costs no loading of models, and leaves no folder
        subject(job.key, job.image, job.files, job.texts, (64, 64), how=options.fit)
    _check_outputs(planned, options)
    return cfg, planned


def _loaded(options: EditOptions, cfg: DictConfig, planned: Plan) -> Editing:
    """Load the method and hold the jobs against what its weights need besides; those that lack it are moved to `broken`."""
    name = str(options.method or cfg.recipe)
    needs, takes = _inputs(cfg)
    loaded = load_editor(cfg, name, weights=options.weights, prompt=options.prompt, device=options.device, dtype=options.dtype)
    if planned.jobs and not loaded.targets:
        _check_jobs(planned, name, (*needs, *loaded.editor.needs), takes)
    peak = peak_of(device_of(options.device), DTYPES[options.dtype or "fp32"])
    return Editing(options, loaded, pace=Pace(peak))


def checked_plan(options: EditOptions, cfg: DictConfig, name: str) -> Plan:
    """Return the jobs of a command, once all is checked that can be without a model.

    Raises:
        UserError: wrong options or inputs.
    """
    needs, takes = _inputs(cfg)
    check_numbers(strength=options.strength, steps=options.steps, samples=options.samples)
    planned = plan(options, name=short_name(name), wants={*ALWAYS, *needs, *takes})
    # A prompt may also choose among trained parts; whether it does is known once they are found.
    _check_jobs(planned, name, needs, (*takes, "prompt"))
    if options.offload not in (None, "none"):
        raise UsageError(f"--offload {options.offload}: {name} has no parts that could wait in main memory; leave it out")
    check_fit(options.fit, any("mask" in job.files for job in planned.jobs))
    return planned


def _inputs(cfg: DictConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the inputs that a recipe's card says it needs and can take."""
    card = cfg.get("card") or {}
    return tuple(card.get("needs") or ()), tuple(card.get("takes") or ())


def _check_jobs(planned: Plan, name: str, needs: Collection[str], takes: Collection[str]) -> None:
    """Hold every job's inputs against the method's; of a folder, only what is wrong with all of them is the command's fault."""
    wrong: dict[str, UsageError] = {}
    for job in planned.jobs:
        try:
            check_inputs(name, tuple(dict.fromkeys(needs)), job.fields(), takes=tuple(takes))
        except UsageError as error:
            wrong[job.key] = error
    if wrong and len(wrong) == len(planned.jobs):
        raise next(iter(wrong.values()))
    planned.jobs[:] = [job for job in planned.jobs if job.key not in wrong]
    planned.broken.update({key: str(error) for key, error in wrong.items()})


def _check_outputs(planned: Plan, options: EditOptions) -> None:
    if planned.folder is not None:
        check_writable(planned.folder)
        return
    job = planned.jobs[0]
    for path in outputs(job, options):
        check_replaceable(path, *job.paths())
    check_writable(job.output.parent)
