"""Training as jobs of a real SLURM: two nodes, and runs that are interrupted and end as if they had not been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from _pytest.capture import CaptureFixture

from editkit import cli
from editkit.app.runs import read_record
from editkit.training import checkpoint
from editkit.training.rundir import RunDir
from tests.outcome import result
from tests.slurm.cluster import Cluster, until
from tests.tiny import shrink

LENGTH = {"trainer.images": "24", "trainer.save_every_s": "0", "trainer.ema": "0.9", "cluster": "local2"}
QUICK = "asyrp"


def overrides(name: str, assets: Path, **more: str) -> list[str]:
    """Return what makes a recipe tiny and, with the cluster `local2`, its training one of two nodes."""
    changes = dict(text.split("=", 1) for text in shrink(name, assets)) | LENGTH | more
    own = ("trainer.num_nodes", "trainer.devices", "trainer.accelerator")  # those are the cluster's to say
    return [f"{key}={value}" for key, value in changes.items() if key not in own]


def submit(name: str, assets: Path, run: RunDir, **more: str) -> str:
    """Submit a training and return its job's id."""
    assert cli.run(["submit", "train", *overrides(name, assets, **more), "-o", str(run.path)]) == 0
    return str(read_record(run.path)["id"])


def said(run: RunDir) -> str:
    return "".join(path.read_text() for path in sorted((run.path / "log").iterdir()))


def wait_for_checkpoints(cluster: Cluster, job: str, run: RunDir, number: int = 2) -> None:
    """Wait until a run has written its `number`-th checkpoint."""

    def there() -> bool:
        assert cluster.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), said(run)
        newest = max(run.checkpoints.glob("step-*"), default=None)
        return newest is not None and json.loads((newest / "state.json").read_text())["stepper"]["images"] >= 2 * number

    until(there, f"{run.path} gets no checkpoint")


@pytest.fixture(scope="module")
def whole(slurm: Cluster, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of two nodes that nothing interrupts."""
    run = RunDir(tmp_path_factory.mktemp("whole") / "run")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**slurm.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}.items():
            patch.setenv(name, value)
        job = submit(QUICK, assets, run)
        assert slurm.wait(job) == "COMPLETED", said(run)
    return run


def test_two_nodes_train_together(cluster, whole, capsys: CaptureFixture[str]):
    snapshot = checkpoint.load(checkpoint.newest(whole.checkpoints))
    assert snapshot.state["stepper"]["images"] == 24 and len(snapshot.state["processes"]) == 2
    assert said(whole).count("wrote ") == len(list(whole.export.rglob("*.safetensors"))) > 0, "the first process alone exports"
    assert cli.run(["jobs", str(whole.path), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["state"], listed["done"], listed["total"]) == ("finished", 24, 24)
    assert listed["job"] == read_record(whole.path)["id"]


def interrupted(cluster: Cluster, assets: Path, run: RunDir, whole: RunDir, interrupt: Callable[[str], None]) -> str:
    """Interrupt a run, wait until it is done, hold it against the whole one and return what it said."""
    job = submit(QUICK, assets, run)
    wait_for_checkpoints(cluster, job, run)
    interrupt(job)
    assert cluster.wait(job) == "COMPLETED", said(run)
    text, left, right = said(run), result(run), result(whole)
    assert "continuing from" in text, text
    assert left.keys() == right.keys() and [key for key in left if left[key] != right[key]] == []
    return text


def test_before_its_time_is_up_a_run_saves_and_is_queued_again(cluster, assets, whole, tmp_path):
    run = RunDir(tmp_path / "run")
    text = interrupted(cluster, assets, run, whole, lambda job: cluster.call("scancel", "--signal=USR2", job))
    assert "stopped by SIGUSR2 at step" in text and "queued again, 19 more times at most" in text, text


@pytest.mark.slow
def test_a_preempted_run_saves_and_is_queued_again(cluster, assets, whole, tmp_path):
    def preempt(job: str) -> None:
        urgent = cluster.call("sbatch", "--parsable", "-N2", "-p", "urgent", "-o", "/dev/null", "--wrap", "srun true")
        assert cluster.wait(urgent) == "COMPLETED"

    text = interrupted(cluster, assets, RunDir(tmp_path / "run"), whole, preempt)
    assert "stopped by SIGTERM at step" in text and "queued again" in text, text


@pytest.mark.slow
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_the_death_of_a_node_costs_nothing_that_was_saved(cluster, assets, whole, tmp_path, node):
    def kill(job: str) -> None:
        cluster.kill(node)
        cluster.start(node)

    interrupted(cluster, assets, RunDir(tmp_path / "run"), whole, kill)


@pytest.mark.slow
def test_paint_by_example_trains_on_two_nodes(cluster, assets, tmp_path):
    run = RunDir(tmp_path / "run")
    assert cluster.wait(submit("pbe", assets, run, **{"trainer.images": "8"})) == "COMPLETED", said(run)
    snapshot = checkpoint.load(checkpoint.newest(run.checkpoints))
    assert snapshot.state["stepper"]["images"] == 8 and len(snapshot.state["processes"]) == 2


@pytest.mark.slow
def test_a_cancelled_run_stays_cancelled(cluster, assets, tmp_path):
    run = RunDir(tmp_path / "run")
    job = submit(QUICK, assets, run, **{"trainer.images": "4000"})
    wait_for_checkpoints(cluster, job, run)
    cluster.call("scancel", job)
    assert cluster.wait(job) == "CANCELLED", said(run)
    assert checkpoint.newest(run.checkpoints) is not None


@pytest.mark.slow
def test_a_run_is_queued_again_no_more_often_than_it_may(cluster, assets, tmp_path, capsys):
    run = RunDir(tmp_path / "run")
    job = submit(QUICK, assets, run, **{"trainer.images": "4000", "cluster.requeues": "0"})
    assert cli.run(["submit", "train", "--from", str(run.path)]) == 1 and f"is job {job} already" in capsys.readouterr().err
    wait_for_checkpoints(cluster, job, run)
    cluster.call("scancel", "--signal=USR2", job)
    assert cluster.wait(job) == "FAILED"
    assert "queued again as often as cluster.requeues allows" in said(run)


@pytest.mark.slow
def test_a_sweep_is_one_array_of_frozen_runs(cluster, assets, tmp_path, capsys):
    folder = tmp_path / "sweep"
    changes = overrides("toy/identity", assets, **{"trainer.images": "4", "seed": "1,2", "trainer.num_nodes": "1"})
    command = ["submit", "train", "--sweep", *changes, "trainer.num_nodes=1", "-o", str(folder)]
    assert cli.run(command) == 0
    job = capsys.readouterr().out.split()[0]
    assert sorted(path.parent.name for path in folder.glob("*/config.yaml")) == ["seed=1", "seed=2"], "frozen before they start"
    cluster.wait(job)
    assert cli.run(["jobs", str(folder), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(run["state"], run["job"]) for run in listed] == [("finished", f"{job}_0"), ("finished", f"{job}_1")], listed
