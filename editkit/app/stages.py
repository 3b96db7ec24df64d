"""The three stages that a picture goes through: read, worked on, written; one by one or in a stream."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from editkit.app.editing import Edited, edit_batch, warning
from editkit.app.inputs import Subject, subject
from editkit.app.loaded import Loaded
from editkit.app.manifest import Manifest, fingerprint
from editkit.app.options import EditOptions
from editkit.app.pace import Pace
from editkit.app.progress import remark
from editkit.app.worklist import Job, Plan, variant
from editkit.data.files import check_replaceable, write_png
from editkit.data.fit import to_pil
from editkit.engine.stream import stream
from editkit.errors import UsageError, UserError

# What keeps every further picture from being written too.
DISK_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


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
        pace: how fast a folder goes.
    """

    options: EditOptions
    loaded: Loaded
    manifest: Manifest | None = None
    remark: Callable[[str], None] = remark
    pace: Pace = field(default_factory=Pace)

    @property
    def batch_size(self) -> int:
        """Pictures at once, so that their samples fill the batch."""
        return 1 if self.loaded.editor.per_image else max(1, self.loaded.batch_size // self.options.samples)

    def begin(self, remark: Callable[[str], None]) -> None:
        """Show remarks by a function from here on, first those on the weights in use."""
        self.remark = remark
        for line in self.loaded.news:
            remark(line)

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


class Settled(NamedTuple):
    """A picture of a folder that needs nothing more.

    Attributes:
        reason: what was wrong with it; None for nothing.
        anew: it was edited now; otherwise its results were there.
    """

    key: str
    reason: str | None = None
    anew: bool = True


def settled(editing: Editing, planned: Plan, folder: Path) -> Iterator[Settled]:
    """Edit what a folder of results does not hold yet; yield each picture once nothing is left to do for it.

    Raises:
        UserError: what fails all pictures alike: wrong settings, a full disk.
    """
    editing.manifest = manifest = Manifest(folder, editing.options.shard)
    for key, reason in planned.broken.items():
        manifest.fail(key, reason)
        yield Settled(key, reason, anew=False)
    left: list[Job] = []
    for job in planned.jobs:
        if editing.done(job):
            yield Settled(job.key, anew=False)
        else:
            left.append(job)
    work = editing.pace.timed(editing.work, count=not editing.loaded.compiled)
    stages = {"decode": editing.read, "work": work, "write": editing.write}
    for job, error in stream(left, **stages, batch_size=editing.batch_size, batch_invariant=editing.loaded.batch_invariant):
        if isinstance(error, UsageError) or _disk_fails(error):
            raise error  # type: ignore[misc]
        reason = None
        if error is not None:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            manifest.fail(job.key, reason)
        yield Settled(job.key, reason)


def _disk_fails(error: Exception | None) -> bool:
    return isinstance(error, UserError) and getattr(error.__cause__, "errno", None) in DISK_FAILS
