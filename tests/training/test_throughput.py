"""The figures on speed: images, arithmetic, and the time that goes by without data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from editkit.engine.gpus import GPUS, peak_of
from editkit.training import throughput
from editkit.training.fit import fit
from editkit.training.metrics_csv import CsvLog
from editkit.training.plan import Plan
from editkit.training.rundir import RunDir
from editkit.training.throughput import FIGURES
from tests.training.two_processes import Pair, Ramps


def logged(folder, dataset, method=None):
    plan = Plan(steps=24, batch_size=4, accelerator="cpu", log_every=8, save_every_s=300)
    fit(method or Pair(), dataset, plan, RunDir(folder))
    return [{name: float(row[name]) for name in FIGURES if row.get(name)} for row in CsvLog(str(folder)).read()[1]]


def test_the_share_of_time_spent_waiting_for_data(tmp_path, monkeypatch):
    """By a clock that moves three seconds for each picture that is read and four for each batch that is worked on."""
    now = [0.0]
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Ramps):
        def __getitem__(self, index):
            now[0] += 3
            return super().__getitem__(index)

    class Working(Pair):
        def updates(self, batch):
            now[0] += 4
            yield from super().updates(batch)

    rows = logged(tmp_path, Slow(), Working())
    assert len(rows) == 3, "of two batches each"
    assert rows[1]["data_wait"] == pytest.approx(12 / 16) and rows[1]["images_per_s"] == pytest.approx(4 / 16)


def test_the_arithmetic_of_a_batch(tmp_path):
    """Two updates of a (frozen layer, a, the gradient of a's weights) and two of b (a, b, the gradient of b's weights)."""
    row = logged(tmp_path, Ramps())[0]
    product = 2 * 4 * 4 * 4  # (4, 4) @ (4, 4), a multiplication and an addition each
    assert row["tflop_per_s"] == pytest.approx(12 * product * row["images_per_s"] / 4 / 1e12, rel=1e-6)
    assert "of_peak" not in row, "nothing is known of this processor"


@pytest.mark.parametrize(
    ("driver", "known"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090 D", None),
    ],
)
def test_gpus_are_known_by_what_their_driver_calls_them(driver, known, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: driver)
    for dtype, peak in ((torch.bfloat16, "half"), (torch.float32, "single")):
        assert peak_of(torch.device("cuda"), dtype) == (None if known is None else getattr(GPUS[known], peak))
    assert peak_of(torch.device("cpu"), torch.float32) is None
