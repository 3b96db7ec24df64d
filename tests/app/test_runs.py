"""`editkit jobs`: what it makes of run folders, with and without SLURM."""

from __future__ import annotations

import json

import pytest
import yaml

from editkit import cli
from editkit.app import runs as app
from editkit.training.rundir import RunDir


@pytest.fixture(autouse=True)
def slurm(monkeypatch):
    """SLURM's states of jobs, to be filled in."""
    states: dict[str, str] = {}
    monkeypatch.setattr(app.slurm, "states", lambda jobs: states if list(jobs) else {})
    return states


def make(folder, *, step=0, images=0, trainer=None, checkpoint=False, export=False, started=True, job=None, pictures=None):
    """Write a run's folder."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump({"trainer": trainer or {"steps": 100, "images": None}}))
    if step:
        run.metrics.write_text(f"step,images,loss,images_per_s\n1,2,9.0,1.0\n{step},{images},0.5,4.0\n")
    if checkpoint:
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
    if export:
        run.export.mkdir()
    if started:
        run.lock.touch()
    if job:
        app.write_record(folder, job, pictures)
    return run


def test_folders_alone_tell_their_state(tmp_path):
    make(tmp_path / "new", started=False)
    make(tmp_path / "failed")
    make(tmp_path / "stopped", step=20, images=40, checkpoint=True)
    make(tmp_path / "longer", step=20, images=40, checkpoint=True, export=True)
    make(tmp_path / "deep" / "finished", step=100, images=200, checkpoint=True, export=True)
    (tmp_path / "something else").mkdir()
    states = {run.folder.rpartition("/")[2]: run.state for run in app.runs(tmp_path)}
    assert states == {
        "new": "new",
        "failed": "failed",
        "stopped": "stopped",
        "longer": "stopped",
        "finished": "finished",
    }


def test_a_run_that_is_held_runs_and_says_how_long_it_will(tmp_path):
    in_steps = make(tmp_path / "a", step=20, images=40, checkpoint=True)
    in_images = make(tmp_path / "b", step=20, images=40, trainer={"steps": 100, "images": 60}, checkpoint=True)
    with in_steps.locked(), in_images.locked():
        a, b = app.runs(tmp_path)
    assert (a.state, a.done, a.total, a.unit, a.loss, a.seconds_left) == ("running", 20, 100, "steps", 0.5, 40.0)
    assert (b.state, b.done, b.total, b.unit, b.seconds_left) == ("running", 40, 60, "images", 5.0)
    assert {run.state for run in app.runs(tmp_path)} == {"stopped"}, "the lock goes with the process"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"42": "PENDING"}, "queued"),
        ({"42": "RUNNING"}, "running"),
        ({"42": "COMPLETING"}, "running"),
        ({"42": "FAILED"}, "failed"),
        ({"42": "OUT_OF_MEMORY"}, "failed"),
        ({"42": "NODE_FAIL"}, "failed"),
        ({"42": "TIMEOUT"}, "stopped"),
        ({"42": "CANCELLED"}, "stopped"),
        ({"42_0": "COMPLETED", "42_1": "RUNNING"}, "running"),
        ({"42_0": "COMPLETED", "42_1": "FAILED"}, "failed"),
        ({"421": "RUNNING"}, "stopped"),
        ({}, "stopped"),
    ],
)
def test_slurm_knows_better(tmp_path, slurm, said, state):
    make(tmp_path / "run", step=20, images=40, checkpoint=True, job="42")
    slurm.update(said)
    (run,) = app.runs(tmp_path)
    assert (run.state, run.job) == (state, "42")


def test_a_folder_of_pictures_counts_those_done(tmp_path, slurm):
    make(tmp_path / "out", job="42", pictures=3)
    for shard, key in enumerate(("a", "b", "a")):  # one of them again
        line = json.dumps({"key": key, "job": "x", "status": "done"})
        (tmp_path / "out" / f"editkit.{shard}-of-3.jsonl").write_text(f"{line}\n")
    slurm["42_1"] = "PENDING"
    (run,) = app.runs(tmp_path)
    assert (run.state, run.done, run.total, run.unit) == ("queued", 2, 3, "pictures")


def test_a_cut_off_row_is_left_out(tmp_path):
    run = make(tmp_path / "run", step=20, images=40)
    run.metrics.write_text(run.metrics.read_text() + "30,6")
    assert app.runs(tmp_path)[0].done == 20


def test_as_a_table_and_as_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    make(tmp_path / "run", step=20, images=40, checkpoint=True)
    assert cli.run(["jobs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "20 of 100 steps" in out and "stopped" in out and "0.5" in out
    assert cli.run(["jobs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "stopped"
    assert cli.run(["jobs", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
