"""What a stopped training does in a SLURM job and outside one. scontrol and squeue are stand-ins."""

from __future__ import annotations

import os
import signal

import pytest

from editkit.app import slurm
from editkit.app import train as app


@pytest.fixture
def job(monkeypatch):
    """A job that runs; what it asks of scontrol is noted in the list."""
    asked: list[str] = []
    for name, value in {"SLURM_JOB_ID": "42", "SLURM_PROCID": "0", slurm.REQUEUES: "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "ending", lambda: False)
    monkeypatch.setattr(slurm, "requeue", lambda: asked.append("requeue") or "")
    return asked


@pytest.mark.parametrize("caught", ["SIGUSR2", "SIGTERM", "a signal to another process"])
def test_a_job_that_is_told_to_stop_is_queued_again_and_does_not_fail(job, caught, capsys):
    with pytest.raises(app.Requeued) as stopped:
        app.stop("stopped", caught)
    assert job == ["requeue"] and stopped.value.exit_code == 0
    assert "queued again, 2 more times at most" in capsys.readouterr().err


def test_the_other_processes_leave_quietly_and_ask_for_nothing(job, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(app.Requeued, match="^$"):
        app.stop("stopped", "SIGUSR2")
    assert job == [] and capsys.readouterr().err == ""


def test_after_the_last_restart_it_stops(job, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(app.Stopped, match="as often as cluster.requeues allows") as stopped:
        app.stop("stopped", "SIGUSR2")
    assert job == [] and stopped.value.exit_code == 1


def test_a_cancelled_job_is_not_brought_back(job, monkeypatch):
    monkeypatch.setattr(slurm, "ending", lambda: True)
    with pytest.raises(app.Requeued, match="SLURM has decided"):
        app.stop("stopped", "SIGTERM")
    assert job == []


def test_the_keyboard_stops_for_good(job):
    with pytest.raises(app.Stopped, match="the same command continues"):
        app.stop("stopped", "SIGINT")
    assert job == []


def test_outside_a_job_nothing_is_asked(job, monkeypatch):
    monkeypatch.delenv(slurm.REQUEUES)
    with pytest.raises(app.Stopped, match="the same command continues$"):
        app.stop("stopped", "SIGTERM")
    assert job == []


def test_a_refusal_is_heard(job, monkeypatch):
    monkeypatch.setattr(slurm, "requeue", lambda: "scontrol requeue: Requested operation is presently disabled")
    with pytest.raises(app.Stopped, match="presently disabled; the same command continues") as stopped:
        app.stop("stopped", "SIGUSR2")
    assert stopped.value.exit_code == 1


def test_a_signal_while_models_are_built_queues_the_job_again(job, monkeypatch):
    before = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setattr(app, "_run", lambda cfg: os.kill(os.getpid(), signal.SIGUSR2))
    with pytest.raises(app.Requeued):
        app.run({})
    assert job == ["requeue"] and signal.getsignal(signal.SIGUSR2) is before


def test_the_state_of_the_job_says_whether_it_is_ending(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.ending() and slurm.requeue() == "scontrol requeue: there is no scontrol here"
    for state, ending in (("RUNNING", False), ("COMPLETING", True), ("PENDING", True), ("", True)):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\necho {state}\n")
        (tmp_path / "squeue").chmod(0o755)
        assert slurm.ending() is ending, state
