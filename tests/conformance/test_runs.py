"""Training through the command line, as processes: two at once, killed, and told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from editkit import cli, recipe
from editkit.engine.stream import one_thread
from editkit.training import checkpoint
from editkit.training.rundir import RunDir
from tests.outcome import result
from tests.tiny import shrink

ROOT = Path(__file__).parents[2]
QUICK = "toy/identity"  # stands for the others in the fast tests
WHOLE = [name for name in recipe.choices("recipe") if "\nstages:" not in recipe.recipe_file(name).read_text(encoding="utf-8")]
ALL = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WHOLE]
LENGTH = ["trainer.images=40", "trainer.steps=400", "trainer.save_every_s=0", "trainer.ema=0.9"]


def command(name: str, assets: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Return a tiny training command, as typed after `editkit`."""
    changes = dict(text.split("=", 1) for text in [*shrink(name, assets), *LENGTH, *overrides])
    return ["train", *(f"{key}={value}" for key, value in changes.items()), f"run_dir={run_dir}"]


def launch(arguments: list[str]) -> subprocess.Popen:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDITKIT_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    arguments = [sys.executable, "-m", "editkit", *arguments]
    return subprocess.Popen(arguments, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, errors = process.communicate(timeout=600)
    if process.returncode not in (0, -signal.SIGKILL) and "nothing to train" in errors:
        assert process.returncode == 2
        pytest.skip("nothing to train")
    return process.returncode, output + errors


def wait_for_checkpoint(process: subprocess.Popen, run: RunDir, number: int) -> None:
    """Wait until the run has written its `number`-th checkpoint."""
    seen: set[str] = set()
    deadline = time.monotonic() + 300
    while len(seen) < number and process.poll() is None and time.monotonic() < deadline:
        if run.checkpoints.is_dir():
            seen |= {path.name for path in run.checkpoints.glob("step-*")}
        time.sleep(0.002)


@pytest.mark.parametrize("name", ALL)
def test_killed_and_started_again_it_ends_bit_identical(name, assets, tmp_path):
    whole, parts = RunDir(tmp_path / "whole"), RunDir(tmp_path / "parts")
    with one_thread():  # as in the other processes: sums over several threads round differently
        code = cli.run(command(name, assets, whole.path))
    if code == 2:
        pytest.skip("nothing to train")
    assert code == 0
    again = command(name, assets, parts.path)
    process = launch(again)
    wait_for_checkpoint(process, parts, 2)
    process.kill()
    code, said = finish(process)
    assert code == -signal.SIGKILL, f"it ended before it was killed: {said}"
    code, said = finish(launch(again))
    assert code == 0 and "continuing from" in said, said
    left, right = result(parts), result(whole)
    assert left.keys() == right.keys()
    assert [key for key in left if left[key] != right[key]] == []


@pytest.mark.parametrize("name", ALL)
def test_two_processes_train_together(name, assets, tmp_path):
    run = RunDir(tmp_path / "run")
    code, said = finish(launch(command(name, assets, run.path, "trainer.devices=2", "trainer.images=12")))
    assert code == 0, said
    snapshot = checkpoint.load(checkpoint.newest(run.checkpoints))
    assert snapshot.state["stepper"]["images"] == 12 and len(snapshot.state["processes"]) == 2
    first, second = (process["random"]["torch"] for process in snapshot.state["processes"])
    assert not first.equal(second), "each process draws its own noise"
    assert any(run.export.rglob("*.safetensors")) and run.config.is_file()
    assert said.count("wrote ") == len(list(run.export.rglob("*.safetensors")))


@pytest.mark.slow
def test_two_processes_share_out_the_weights_and_export_whole_ones(assets, tmp_path):
    run, alone = RunDir(tmp_path / "run"), RunDir(tmp_path / "alone")
    shared = ("trainer.devices=2", "trainer.strategy=fsdp2", "trainer.sample_every=2")
    for place, changes in ((run, shared), (alone, ())):
        code, said = finish(launch(command("instructpix2pix", assets, place.path, "trainer.images=12", *changes)))
        assert code == 0, said
    files, others = ({path.relative_to(place.export) for path in place.export.rglob("*.*")} for place in (run, alone))
    assert files == others and len(list(run.samples.iterdir())) == 3
    left, right = (load_file(place.export / "instructpix2pix.safetensors") for place in (run, alone))
    assert {name: tensor.shape for name, tensor in left.items()} == {name: tensor.shape for name, tensor in right.items()}


@pytest.mark.slow
def test_two_processes_continue_where_they_stopped(assets, tmp_path):
    run = RunDir(tmp_path / "run")
    for images in (8, 12):
        code, said = finish(launch(command(QUICK, assets, run.path, "trainer.devices=2", f"trainer.images={images}")))
        assert code == 0 and ("continuing from" in said) == (images > 8), said
    assert checkpoint.load(checkpoint.newest(run.checkpoints)).state["stepper"]["images"] == 12


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_told_to_stop_it_saves_and_says_how_to_go_on(assets, tmp_path, number):
    run = RunDir(tmp_path / "run")
    process = launch(command(QUICK, assets, run.path, "trainer.images=4000", "trainer.steps=4000"))
    wait_for_checkpoint(process, run, 2)
    process.send_signal(number)
    code, said = finish(process)
    assert code == 1 and f"stopped by {number.name}" in said and "the same command continues" in said, said
    assert "Traceback" not in said and checkpoint.newest(run.checkpoints) is not None
    assert not run.export.exists()
