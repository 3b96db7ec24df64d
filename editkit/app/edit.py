"""`editkit edit`: one picture or a folder of them through a method, and back into the photographs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from editkit.app.editing import Edited, edit_batch, warning
from editkit.app.inputs import ALWAYS, Subject, check_fit, check_inputs, subject
from editkit.app.loaded import Loaded, compose_for, load_editor, short_name
from editkit.app.manifest import Manifest, fingerprint
from editkit.app.numbers import check_numbers
from editkit.app.options import EditOptions
from editkit.app.progress import Progress, remark
from editkit.app.worklist import Job, Plan, plan, variant
from editkit.data.files import check_replaceable, check_writable, write_png
from editkit.data.fit import to_pil
from editkit.engine.stream import stream
from editkit.errors import UsageError, UserError
from editkit.recipe import thaw

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What keeps every further picture from being written too.
DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def edit_images(options: EditOptions) -> int:
    """Run the command and return its exit code: 0 if every picture was edited, 1 if some of a folder failed.

    What can be wrong with the command itself is found before a model is loaded, and nothing is written before that.

    Raises:
        UserError: wrong options, inputs or weights; for a single picture also whatever is wrong with it.
    """
    cfg = thaw(options.source) if options.source else compose_for(options, "edit")
    name = str(options.method or cfg.recipe)
    needs, takes = _inputs(cfg)
    planned = checked_plan(options, cfg, name)
    if options.shard is not None:
        planned = planned.share(options.shard)
    if planned.folder is None:
        job = planned.jobs[0]  # a bad picture costs no loading of models
        subject(job.key, job.image, job.files, job.texts, (64, 64), how=options.fit)
    _check_outputs(planned, options)
    loaded = load_editor(cfg, name, weights=options.weights, prompt=options.prompt, device=options.device, dtype=options.dtype)
    if planned.jobs and not loaded.targets:
        _check_jobs(planned, name, (*needs, *loaded.editor.needs), takes)
    editing = Editing(options, loaded)
    for line in loaded.news:
        remark(line)
    return _run_single(editing, planned.jobs[0]) if planned.folder is None else _run_folder(editing, planned, planned.folder)


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


@dataclass(frozen=True)
class Task:
    """A job that is read and ready: its fingerprint and its request."""

    job: Job
    digest: str
    subject: Subject


@dataclass
class Editing:
    """The three stages that a picture goes through.

    Attributes:
        manifest: what the folder of results holds already; None for a single picture, which is edited again each time.
        remark: shows a line to the user.
    """

    options: EditOptions
    loaded: Loaded
    manifest: Manifest | None = None
    remark: Callable[[str], None] = remark

    @property
    def batch_size(self) -> int:
        """Pictures at once, so that their samples fill the batch."""
        return 1 if self.loaded.editor.per_image else max(1, self.loaded.batch_size // self.options.samples)

    def done(self, job: Job) -> bool:
        """Say whether a job's results are there already."""
        paths = outputs(job, self.options)
        if self.manifest is None or not all(path.is_file() for path in paths):
            return False
        try:
            return self.manifest.done(job.key, fingerprint(self._settings(job), job.paths()), paths)
        except UserError:
            return False  # reading it will say what is wrong

    def read(self, job: Job) -> Task:
        """Return a job's request.

        Raises:
            UserError: a picture that cannot be used, or somebody else's file where a result should go.
        """
        for path in outputs(job, self.options):
            check_replaceable(path, *job.paths())
        prompt, targets = job.texts.get("prompt"), self.loaded.targets
        if prompt and targets and not any(one.answers(prompt) for one in targets):
            ready = ", ".join(repr(one.target) for one in targets)
            raise UserError(f"its prompt is {prompt!r}, but the weights in use are for {ready}: give it a run of its own")
        digest = fingerprint(self._settings(job), job.paths())
        settings: dict[str, Any] = {"how": self.options.fit, "steps": self.options.steps, "seed": self.options.seed}
        settings["whole_references"] = self.loaded.editor.whole_references
        try:
            return Task(job, digest, subject(job.key, job.image, job.files, job.texts, self.loaded.size, **settings))
        except UsageError as error:
            raise UserError(str(error)) from error  # the inputs of this one picture, not the command

    def work(self, tasks: Sequence[Task]) -> list[tuple[Task, list[Edited]]]:
        """Return every task's results."""
        strengths: Sequence[float | None] = self.options.strength or [None]
        results = edit_batch(self.loaded, [task.subject for task in tasks], strengths, self.options.samples)
        for task, edited in zip(tasks, results, strict=True):
            line = warning(self.loaded, edited[0].scores)
            if line:
                self.remark(f"{task.job.key or 'the result'}: {line}")
        return list(zip(tasks, results, strict=True))

    def write(self, job: Job, result: tuple[Task, list[Edited]]) -> None:
        """Paste and write a job's results, then list it as done."""
        task, edited = result
        paths = outputs(job, self.options)
        for path, one in zip(paths, edited, strict=False):
            write_png(path, task.subject.finished(one.image).pil(), self._provenance(task, one))
        if len(paths) > len(edited):
            write_png(
                paths[-1], strip(task.subject, edited), self._provenance(task, edited[0]) | {"strength": self.options.strength}
            )
        if self.manifest is not None:
            self.manifest.add(job.key, task.digest, paths)

    def _settings(self, job: Job) -> dict[str, Any]:
        """Return all that decides a job's results, apart from the content of its files."""
        options = self.options
        mine = {name: getattr(options, name) for name in ("strength", "steps", "seed", "samples", "fit", "dtype")}
        kept = {name: value for name, value in self.loaded.provenance.items() if name != "versions"}
        return {**mine, **kept, "key": job.key, "texts": dict(job.texts), "files": {f: len(p) for f, p in job.files.items()}}

    def _provenance(self, task: Task, result: Edited) -> dict[str, Any]:
        photo = task.subject.photo
        return {
            **self.loaded.provenance,
            "job": task.digest,
            "key": task.job.key,
            "image": None if photo is None else photo.digest,
            "texts": dict(task.job.texts),
            "seed": self.options.seed,
            "sample": result.sample,
            "strength": result.strength,
            "steps": self.options.steps,
            "scores": {name: round(value, 4) for name, value in result.scores.items()},
        } | ({"text": result.text} if result.text else {})


def outputs(job: Job, options: EditOptions) -> list[Path]:
    """Return the files of a job's results, in the order of `edit_batch`, and after them the strip of several strengths."""
    strengths: Sequence[float | None] = options.strength or [None]
    paths = [
        variant(job.output, strengths, strength, options.samples, sample)
        for strength in strengths
        for sample in range(options.samples)
    ]
    return [*paths, job.output.with_name(f"{job.output.stem}.strip.png")] if len(strengths) > 1 else paths


def strip(subject: Subject, edited: Sequence[Edited]) -> Image.Image:
    """Return a row of pictures at the model's size for each sample: the source, then its results by rising strength."""
    source = [] if subject.request.image is None else [subject.request.image]
    ranked = sorted(edited, key=lambda one: (one.sample, one.strength or 0.0))
    rows = [
        [*source, *(one.image for one in ranked if one.sample == sample)] for sample in sorted({one.sample for one in edited})
    ]
    return to_pil(torch.cat([torch.cat(row, dim=2) for row in rows], dim=1))


def _run_single(editing: Editing, job: Job) -> int:
    """Edit one picture; whatever is wrong with it is the command's error."""
    with Progress(total=1) as progress:
        editing.remark = progress.note
        editing.write(job, editing.work([editing.read(job)])[0])
        progress.wrote(outputs(job, editing.options))
    return 0


def _run_folder(editing: Editing, planned: Plan, folder: Path) -> int:
    """Edit what is not done yet; return 1 if some pictures failed.

    Raises:
        UserError: what fails all pictures alike: wrong settings, a full disk.
    """
    editing.manifest = manifest = Manifest(folder, editing.options.shard)
    failed: dict[str, str] = {}

    def fail(key: str, reason: str) -> None:
        failed[key] = reason
        manifest.fail(key, reason)

    with Progress(total=len(planned.jobs)) as progress:
        editing.remark = progress.note

        def settled(job: Job, error: Exception | None) -> None:
            if isinstance(error, UsageError) or _disk_fails(error):
                raise error  # type: ignore[misc]
            if error is not None:
                fail(job.key, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            progress.advance()

        for key, reason in planned.broken.items():
            fail(key, reason)
        stream(
            _still_to_do(editing, planned.jobs, progress.advance),
            decode=editing.read,
            work=editing.work,
            write=editing.write,
            batch_size=editing.batch_size,
            batch_invariant=editing.loaded.batch_invariant,
            on_item=settled,
        )
    progress.summary(folder, done=len(planned.jobs) + len(planned.broken) - len(failed), failed=failed, listed=manifest.path.name)
    return 1 if failed else 0


def _still_to_do(editing: Editing, jobs: Sequence[Job], skipped: Callable[[], None]) -> Iterator[Job]:
    for job in jobs:
        if editing.done(job):
            skipped()
        else:
            yield job


def _disk_fails(error: Exception | None) -> bool:
    return isinstance(error, UserError) and getattr(error.__cause__, "errno", None) in DISK_FAILS


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
