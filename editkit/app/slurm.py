"""SLURM as its own programs see it: sbatch, squeue, sacct, sinfo, scontrol."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from editkit.errors import UserError

REQUEUES = "EDITKIT_REQUEUES"  # set by a job's file: how often the job may be queued again


def check_installed() -> None:
    """Raise UserError where jobs cannot be submitted."""
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine; repeat this where SLURM is, or see the job file with --dry-run")


def submit(file: Path) -> str:
    """Give a job file to sbatch and return the job's id.

    Raises:
        UserError: it refuses, in its own words.
    """
    done = _call("sbatch", "--parsable", str(file))
    if done.returncode:
        raise UserError(f"sbatch refused {file}: {' '.join(done.stderr.replace('sbatch: error:', '').split())}")
    return done.stdout.strip().partition(";")[0]  # ID;CLUSTER where there are several


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Return SLURM's state of every job and array element (`42`, `42_0`) that it still knows, of those in `jobs`."""
    wanted = {job.partition("_")[0] for job in jobs}
    found: dict[str, str] = {}
    for command in (
        ("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(sorted(wanted))),
        ("squeue", "-h", "-r", "--me", "-t", "all", "-o", "%i|%T"),
    ):
        if wanted and shutil.which(command[0]):  # sacct fails where no accounts are kept
            lines = (line.partition("|") for line in _call(*command).stdout.splitlines())
            found |= {job: state.split()[0] for job, _, state in lines if state and job.partition("_")[0] in wanted}
    return found


def partitions() -> list[str] | None:
    """Return a line on each partition; None without SLURM.

    Raises:
        UserError: SLURM is installed but does not answer.
    """
    if shutil.which("sinfo") is None:
        return None
    done = _call("sinfo", "-h", "-o", "%P|%a|%D nodes|%c processors each|GPUs %G|at most %l")
    if done.returncode:
        raise UserError(f"sinfo does not answer: {' '.join(done.stderr.split())[:150]}")
    return [line.replace("|", ", ") for line in done.stdout.splitlines()]


def requeues_left() -> int:
    """Return how often the job around this process may still be queued again; 0 outside a job that asks for it."""
    return max(0, int(os.environ.get(REQUEUES, "0")) - int(os.environ.get("SLURM_RESTART_COUNT", "0"))) if in_job() else 0


def restarted() -> bool:
    """Say whether this process belongs to a job that has been in the queue again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def in_job() -> bool:
    """Say whether this process belongs to a job that asked to be queued again."""
    return REQUEUES in os.environ and "SLURM_JOB_ID" in os.environ


def ending() -> bool:
    """Say whether SLURM is about to end this process's job anyway: someone cancelled it, or SLURM queues it again itself."""
    done = _call("squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%T")
    return done.returncode == 0 and done.stdout.strip() not in ("RUNNING", "SIGNALING")


def requeue() -> str:
    """Put the job around this process back into the queue, which ends the process; return why that was refused, or nothing."""
    done = _call("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    return f"scontrol requeue: {' '.join(done.stderr.split())}" if done.returncode else ""


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"there is no {command[0]} here")
