"""`editkit edit`: one picture or a folder of them through a method, and back into the photographs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editkit.app.batches import Batches
from editkit.app.editing import Edited, edit_batch, warning
from editkit.app.inputs import ALWAYS, Subject, as_mask, as_photo, check_fit, check_inputs, subject
from editkit.app.jobs import Job, Plan, plan, variant
from editkit.app.loaded import Loaded, compose_for, load_editor, short_name
from editkit.app.manifest import NAME, Manifest, fingerprint
from editkit.app.options import EditOptions
from editkit.app.progress import Progress
from editkit.data.files import check_replaceable, check_writable, write_png
from editkit.errors import UsageError, UserError


def edit_images(options: EditOptions) -> int:
    """Run the command and return its exit code: 0 if every picture was edited, 1 if some of a folder failed.

    What can be wrong with the command itself is found before a model is loaded, and nothing is written before that.

    Raises:
        UserError: wrong options, inputs or weights; for a single picture also whatever is wrong with it.
    """
    cfg = compose_for(options, "edit")
    name, card = str(options.method), cfg.get("card") or {}
    needs, takes = tuple(card.get("needs") or ()), tuple(card.get("takes") or ())
    check_numbers(strength=options.strength, steps=options.steps, samples=options.samples)
    planned = plan(options, name=short_name(name), wants={*ALWAYS, *needs, *takes})
    # A prompt may also choose among trained parts; whether it does is known once they are found.
    _check_jobs(planned, name, needs, (*takes, "prompt"))
    check_fit(options.fit, any("mask" in job.files for job in planned.jobs))
    if planned.folder is None:
        _check_pictures(planned.jobs[0])
    _check_outputs(planned, options)
    loaded = load_editor(cfg, name, weights=options.weights, prompt=options.prompt, device=options.device, dtype=options.dtype)
    if not loaded.targets:
        _check_jobs(planned, name, (*needs, *loaded.editor.needs), takes)
    return _run(Editing(options, loaded), planned)


@dataclass(frozen=True)
class Task:
    """A job that is read and ready: its fingerprint and its request."""

    job: Job
    digest: str
    subject: Subject


@dataclass
class Editing:
    """The three stages that a picture goes through."""

    options: EditOptions
    loaded: Loaded
    manifest: Manifest | None = None

    @property
    def strengths(self) -> Sequence[float | None]:
        """The strengths of each picture's results; None alone is the method's own."""
        return self.options.strength or [None]

    def read(self, job: Job) -> Task | None:
        """Return a job's request, or None if its results are there already."""
        digest = fingerprint(self._settings(job), job.paths())
        if self.manifest is not None:
            if self.manifest.done(job.key, digest, outputs(job, self.options)):
                return None
            for path in outputs(job, self.options):
                check_replaceable(path, *job.paths())
        prompt = job.texts.get("prompt")
        if prompt and self.loaded.targets and not any(one.answers(prompt) for one in self.loaded.targets):
            ready = ", ".join(repr(one.target) for one in self.loaded.targets)
            raise UserError(f"its prompt is {prompt!r}, but the weights in use are for {ready}: give it a run of its own")
        settings: dict[str, Any] = {"steps": self.options.steps, "seed": self.options.seed}
        return Task(
            job, digest, subject(job.key, job.image, job.files, job.texts, self.loaded.size, how=self.options.fit, **settings)
        )

    def work(self, tasks: Sequence[Task]) -> list[list[Edited]]:
        """Return every task's results."""
        return edit_batch(self.loaded, [task.subject for task in tasks], self.strengths, self.options.samples)

    def write(self, task: Task, results: Sequence[Edited]) -> None:
        """Paste and write a task's results, then list it as done."""
        paths = outputs(task.job, self.options)
        for path, result in zip(paths, results, strict=True):
            write_png(path, task.subject.finished(result.image).pil(), self._provenance(task, result))
        if self.manifest is not None:
            self.manifest.add(task.job.key, task.digest, paths)

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
    """Return the files of a job's results, in the order of `edit_batch`."""
    strengths: Sequence[float | None] = options.strength or [None]
    return [
        variant(job.output, strengths, strength, options.samples, sample)
        for strength in strengths
        for sample in range(options.samples)
    ]


def check_numbers(*, strength: Sequence[float] = (), steps: int | None = None, samples: int = 1) -> None:
    """Raise a UsageError for a number that no method can work with."""
    if samples < 1:
        raise UsageError(f"--samples {samples}: at least 1 result is needed")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps {steps}: at least 1 step is needed")
    if len(set(strength)) < len(strength):
        raise UsageError(f"--strength is given twice with the same value: {', '.join(f'{value:g}' for value in strength)}")


def _run(editing: Editing, planned: Plan) -> int:
    failed: dict[str, str] = dict(planned.broken)
    with Progress(total=len(planned.jobs)) as progress:
        for line in editing.loaded.news:
            progress.note(line)

        def work(tasks: Sequence[Task]) -> list[list[Edited]]:
            results = editing.work(tasks)
            for task, edited in zip(tasks, results, strict=True):
                line = warning(editing.loaded, edited[0].scores)
                if line:
                    progress.note(f"{task.job.key or 'the result'}: {line}")
            return results

        if planned.folder is None:
            _run_single(editing, planned.jobs[0], work)
            progress.wrote(outputs(planned.jobs[0], editing.options))
            return 0
        editing.manifest = manifest = Manifest(planned.folder)
        for key, reason in planned.broken.items():
            manifest.fail(key, reason)

        def fail(job: Job, reason: str) -> None:
            failed[job.key] = reason
            manifest.fail(job.key, reason)

        size = 1 if editing.loaded.editor.per_image else editing.loaded.batch_size // editing.options.samples
        for _ in Batches(editing.read, work, editing.write, fail, size=size).run(planned.jobs):
            progress.advance()
    progress.summary(planned.folder, done=len(planned.jobs) + len(planned.broken) - len(failed), failed=failed, listed=NAME)
    return 1 if failed else 0


def _run_single(editing: Editing, job: Job, work: Any) -> None:
    task = editing.read(job)
    assert task is not None
    editing.write(task, work([task])[0])


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


def _check_pictures(job: Job) -> None:
    """Read a single picture and its mask now, so that a bad one costs no loading of models."""
    if job.image is not None:
        photo = as_photo(job.image)
        for mask in job.files.get("mask", ()):
            as_mask(mask, photo)


def _check_outputs(planned: Plan, options: EditOptions) -> None:
    if planned.folder is not None:
        check_writable(planned.folder)
        return
    job = planned.jobs[0]
    for path in outputs(job, options):
        check_replaceable(path, *job.paths())
    check_writable(job.output.parent)
