"""`editkit jobs`: which runs a folder holds and how far each one is, from what lies there and from what SLURM says."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from editkit.app import slurm
from editkit.app.manifest import finished
from editkit.engine.atomic import write_bytes
from editkit.errors import UserError
from editkit.training.rundir import RunDir

RECORD = "job.json"  # beside a run's config.yaml: its job's id, and how many pictures are to be edited
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "SUSPENDED")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING")
STOPPED = ("CANCELLED", "PREEMPTED", "TIMEOUT", "DEADLINE", "REVOKED")


@dataclass(frozen=True)
class Run:
    """One run and how far it is.

    Attributes:
        state: queued, running, finished, stopped (the same command continues), failed, or new (frozen, never started).
        job: its SLURM job, if it was submitted as one.
        done, total: in `unit` ("steps", "images" seen, "pictures" edited).
        loss: last logged.
        seconds_left: at the pace last logged; None unless it is running.
    """

    folder: str
    state: str
    job: str | None
    done: int
    total: int
    unit: str
    loss: float | None = None
    seconds_left: float | None = None


def list_runs(folder: Path, *, as_json: bool) -> int:
    """Print the runs in a folder as a table or as JSON, and return 0.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; runs are in runs/ unless run_dir= says otherwise")
    found = runs(folder)
    if as_json:
        print(json.dumps([asdict(run) for run in found], indent=1))
    elif found:
        _print_table(found)
    else:
        print(f"no runs in {folder}")
    return 0


def runs(folder: Path) -> list[Run]:
    """Return the runs in a folder and below, by name."""
    places = sorted(_places(folder))
    records = {place: read_record(place) for place in places}
    states = slurm.states(record["id"] for record in records.values() if record)
    return [_run(place, records[place], states) for place in places]


def write_record(run: Path, job: str, pictures: int | None) -> None:
    """Note a run's job beside its configuration."""
    write_bytes(run / RECORD, (json.dumps({"id": job, "pictures": pictures}) + "\n").encode())


def read_record(run: Path) -> dict[str, Any]:
    """Return what `write_record` noted; nothing if it did not."""
    try:
        return dict(json.loads((run / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def belongs(element: str, job: str) -> bool:
    """Say whether a job or an element of an array (42_0) is the job `job` or belongs to its array."""
    return element == job or element.startswith(f"{job}_")


def active(state: str) -> bool:
    """Say whether a job in this state of SLURM waits or runs."""
    return state in QUEUED or state in RUNNING


def _places(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files:
            yield Path(path)
            folders.clear()


def _run(place: Path, record: Mapping[str, Any], states: Mapping[str, str]) -> Run:
    job = record.get("id")
    own = [state for element, state in states.items() if job and belongs(element, job)]
    try:
        trainer = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))["trainer"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {place / 'config.yaml'}: {' '.join(str(error).split())[:150]}") from error
    if record.get("pictures"):
        done, total, unit, figures = _edited(place), int(record["pictures"]), "pictures", {}
        whole = done >= total
    else:
        unit = "steps" if trainer.get("images") is None else "images"
        figures, total = _figures(place), int(trainer[unit])
        done = int(figures.get("step" if unit == "steps" else unit, 0))
        whole = done >= total and RunDir(place).export.is_dir()
    state = _state(RunDir(place), own, whole)
    left = _seconds_left(figures, total if unit == "images" else total * figures.get("images", 0) / max(done, 1))
    return Run(str(place), state, job, done, total, unit, figures.get("loss"), left if state == "running" else None)


def _state(run: RunDir, slurm: Iterable[str], whole: bool) -> str:
    slurm = set(slurm)
    if slurm & {*RUNNING} or _held(run):
        return "running"
    if slurm & {*QUEUED}:
        return "queued"
    if whole:
        return "finished"
    if slurm - {*STOPPED, "COMPLETED"}:
        return "failed"
    if slurm or any(run.checkpoints.glob("step-*")):
        return "stopped"
    return "failed" if run.lock.exists() else "new"  # a run that started saves when it is told to stop


def _held(run: RunDir) -> bool:
    """Say whether a process on this computer is at the run."""
    try:
        with run.lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _figures(place: Path) -> dict[str, float]:
    """Return the last row of metrics.csv."""
    try:
        with RunDir(place).metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]  # a crash may have cut the last one off
        return {name: float(value) for name, value in (rows[-1] if rows else {}).items() if value}
    except (OSError, ValueError):
        return {}


def _seconds_left(figures: Mapping[str, float], images: float) -> float | None:
    rate = figures.get("images_per_s")
    return max(0.0, round((images - figures["images"]) / rate, 1)) if rate else None


def _edited(place: Path) -> int:
    """Return how many pictures a folder of results lists as done."""
    return len({key for path in place.glob("editkit*.jsonl") for key in finished(path.read_bytes())})


def _print_table(found: Iterable[Run]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for title, right in (("run", ""), ("state", ""), ("done", "right"), ("loss", "right"), ("left", "right"), ("job", "right")):
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for run in found:
        loss = "" if run.loss is None else f"{run.loss:.4g}"
        left = "" if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left)))
        table.add_row(run.folder, run.state, f"{run.done} of {run.total} {run.unit}", loss, left, run.job or "")
    Console(highlight=False).print(table)
