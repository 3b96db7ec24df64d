"""Two processes make the steps that one process would have made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from editkit.training import checkpoint
from editkit.training.metrics_csv import CsvLog
from editkit.training.rundir import RunDir
from editkit.training.throughput import FIGURES
from tests.training import two_processes


def test_two_processes_make_the_steps_of_one(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.training.two_processes", str(tmp_path / "two"), "2"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    two_processes.main(str(tmp_path / "one"), 1)

    one, two = (checkpoint.load(checkpoint.newest(RunDir(tmp_path / name).checkpoints)) for name in ("one", "two"))
    assert one.state["stepper"]["images"] == two.state["stepper"]["images"]
    assert one.weights.keys() == two.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.allclose(tensor, two.weights[name], atol=1e-6), name
    logged = [CsvLog(str(tmp_path / name)).read()[1] for name in ("one", "two")]
    assert len(logged[0]) == len(logged[1])
    for left, right in zip(*logged, strict=True):
        assert all(abs(float(left[name]) - float(right[name])) < 1e-4 for name in left if name not in FIGURES)
