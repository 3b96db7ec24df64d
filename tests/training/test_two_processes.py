"""Two processes make the steps that one process would have made, and either may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from editkit.training import checkpoint
from editkit.training.metrics_csv import CsvLog
from editkit.training.rundir import RunDir
from editkit.training.throughput import FIGURES
from tests.training import two_processes
from tests.training.test_fit import final, rows


def launch(folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """Run two processes; it returns when both have ended, for both hold its pipes."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder), "2", *map(str, more)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "two"
    done = launch(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_make_the_steps_of_one(whole, tmp_path):
    two_processes.main(str(tmp_path / "one"), 1)
    one, two = (checkpoint.load(checkpoint.newest(RunDir(folder).checkpoints)) for folder in (tmp_path / "one", whole))
    assert one.state["stepper"]["images"] == two.state["stepper"]["images"]
    assert one.weights.keys() == two.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.allclose(tensor, two.weights[name], atol=1e-6), name
    logged = [CsvLog(str(folder)).read()[1] for folder in (tmp_path / "one", whole)]
    assert len(logged[0]) == len(logged[1])
    for left, right in zip(*logged, strict=True):
        assert all(abs(float(left[name]) - float(right[name])) < 1e-4 for name in left if name not in FIGURES)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_if_one_is_killed_the_command_ends_and_continues_to_the_same_bits(whole, tmp_path, rank):
    killed = launch(tmp_path, rank, 7)
    assert killed.returncode == -signal.SIGKILL or "another process of the run was lost" in killed.stderr, killed.stderr
    assert killed.returncode != 0
    saved = checkpoint.newest(RunDir(tmp_path).checkpoints)
    assert saved is not None and final(tmp_path) != final(whole)
    again = launch(tmp_path)
    assert again.returncode == 0 and f"continuing from {saved}" in again.stderr, again.stderr
    assert final(tmp_path) == final(whole) and rows(tmp_path) == rows(whole)
