"""Whole runs: they resume to the bit, stop cleanly, and nothing that watches them changes them."""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.errors import UsageError, UserError
from editkit.training import checkpoint
from editkit.training.fit import fit
from editkit.training.plan import Plan
from editkit.training.rundir import VARIABLE, RunDir
from editkit.training.stepper import NotFinite
from editkit.training.throughput import FIGURES
from tests.training.toys import Copy, Numbers, new

PLAN = {"batch_size": 4, "accelerator": "cpu", "save_every_s": 1000, "log_every": 2, "ema": 0.9}
SCHEDULE = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=20)


def run(folder, method=None, dataset=None, **plan):
    method = new(scheduler=SCHEDULE) if method is None else method
    dataset = Numbers() if dataset is None else dataset
    return fit(method, dataset, Plan(**{**PLAN, "steps": 8, **plan}), RunDir(folder))


def final(folder):
    """Return every byte that matters of the newest checkpoint."""
    newest = checkpoint.newest(RunDir(folder).checkpoints)
    names = ("weights.safetensors", "state.safetensors", "state.json")
    return newest.name, {name: (newest / name).read_bytes() for name in names}


def rows(folder):
    with RunDir(folder).metrics.open() as file:
        return [{k: v for k, v in row.items() if k not in FIGURES} for row in csv.DictReader(file)]


def test_a_run_leaves_its_layout(tmp_path):
    outcome = run(tmp_path, sample_every=4)
    assert (outcome.steps, outcome.images, outcome.resumed, outcome.stopped_by) == (8, 32, None, None)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000004.png", "step-00000008.png"]
    assert [row["step"] for row in rows(tmp_path)] == ["2", "4", "6", "8"]
    assert {"loss", "loss/l2", "grad_norm/net", "lr/net", "images"} <= rows(tmp_path)[0].keys()
    assert float(rows(tmp_path)[-1]["loss"]) < float(rows(tmp_path)[0]["loss"])
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("several", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_ends_bit_identical(tmp_path, several, accumulate):
    def method():
        return new(scheduler=SCHEDULE, updates_a_batch=several)

    size = {"images": 40, "accumulate": accumulate}
    run(tmp_path / "whole", method(), **size)
    run(tmp_path / "parts", method(), **{**size, "images": 16})
    torch.manual_seed(123)  # another process has other states
    outcome = run(tmp_path / "parts", method(), **size)
    assert outcome.resumed is not None
    assert final(tmp_path / "parts") == final(tmp_path / "whole")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_the_weights_of_a_resumed_method_come_from_the_checkpoint(tmp_path):
    run(tmp_path / "a", steps=4)
    resumed = new(seed=0, scheduler=SCHEDULE)
    with torch.no_grad():
        resumed.net[0].weight.zero_()
    run(tmp_path / "a", resumed)
    whole = new(scheduler=SCHEDULE)
    run(tmp_path / "b", whole)
    assert torch.equal(resumed.net[0].weight, whole.net[0].weight)


def test_a_finished_run_is_not_trained_on(tmp_path):
    run(tmp_path)
    before = final(tmp_path)
    method = new(scheduler=SCHEDULE)
    outcome = run(tmp_path, method)
    assert outcome.steps == 8 and final(tmp_path) == before
    loaded = checkpoint.load(outcome.resumed).weights
    assert all(torch.equal(loaded[name], tensor) for name, tensor in method.trained_state().items())


@pytest.mark.parametrize("change", [{"sample_every": 1}, {"log_every": 1}, {"save_every_s": 0}, {"num_workers": 1}])
def test_watching_a_run_does_not_change_it(tmp_path, change):
    run(tmp_path / "plain")
    run(tmp_path / "watched", **change)
    assert final(tmp_path / "watched") == final(tmp_path / "plain")


def test_another_seed_is_another_run(tmp_path):
    weights = []
    for seed in (0, 1):
        method = new()
        fit(method, Numbers(), Plan(**PLAN, steps=4), RunDir(tmp_path / str(seed)), seed=seed)
        weights.append(method.net[0].weight.detach().clone())
    assert not torch.equal(*weights)


def test_a_corrupt_checkpoint_is_skipped_and_the_end_is_the_same(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "parts", steps=4, save_every_s=0)
    newest = checkpoint.newest(RunDir(tmp_path / "parts").checkpoints)
    (newest / "weights.safetensors").write_bytes(b"torn")
    with pytest.warns(UserWarning, match=f"skipped the checkpoint .*{newest.name}"):
        outcome = run(tmp_path / "parts")
    assert outcome.resumed.name == "step-00000003"
    assert final(tmp_path / "parts") == final(tmp_path / "whole") and rows(tmp_path / "parts") == rows(tmp_path / "whole")


class Interrupted(Numbers):
    """Sends a signal to the own process when item `at` of the run is read."""

    def __init__(self, at, number):
        super().__init__()
        self.reads, self.at, self.number = 0, at, number

    def __getitem__(self, index):
        self.reads += 1
        if self.reads == self.at:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_saves_at_the_next_boundary_and_the_same_call_continues(tmp_path, number):
    run(tmp_path / "whole")
    before = signal.getsignal(number)
    stopped = run(tmp_path / "parts", dataset=Interrupted(14, number))
    assert stopped.stopped_by == number.name and 0 < stopped.steps < 8
    assert signal.getsignal(number) is before
    run(tmp_path / "parts")
    assert final(tmp_path / "parts") == final(tmp_path / "whole")


def test_a_gradient_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    class Bad(Numbers):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "image": item["image"] * float("nan")} if index == 3 else item

    run(tmp_path, steps=2)
    before = final(tmp_path)
    with pytest.raises(NotFinite, match=r"not finite at step [3-5] .*Images of the batch: .*3"):
        run(tmp_path, dataset=Bad())
    assert final(tmp_path) == before


def test_a_full_disk_does_not_end_a_run_but_cannot_pass_at_its_end(tmp_path, monkeypatch):
    written = []
    original = checkpoint._write

    def refuse(draft, weights, state):
        written.append(1)
        if len(written) in failing:
            raise OSError(28, "No space left on device")
        original(draft, weights, state)

    monkeypatch.setattr(checkpoint, "_write", refuse)
    failing = {2, 3}
    with pytest.warns(UserWarning, match="no space left for a checkpoint"):
        run(tmp_path / "a", save_every_s=0)
    assert final(tmp_path / "a")[0] == "step-00000008"
    written.clear()
    failing = {8}
    with pytest.raises(UserError, match="no space left"):
        run(tmp_path / "b", save_every_s=0)
    assert final(tmp_path / "b")[0] == "step-00000007"


def test_two_processes_cannot_hold_one_run(tmp_path):
    with RunDir(tmp_path).locked(), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        run(tmp_path)
    run(tmp_path)


def test_precompute_sees_the_data_once_and_changes_nothing(tmp_path):
    class Prepared(Copy):
        def prepare_training(self):
            self.judge = torch.nn.Linear(4, 4)

        def precompute(self, dataset):
            assert not self.judge.weight.requires_grad and not self.judge.training
            self.calls = getattr(self, "calls", 0) + 1
            self.first = dataset[0]["image"]

    torch.manual_seed(0)
    method = Prepared(scheduler=SCHEDULE)
    run(tmp_path / "a", method)
    run(tmp_path / "b")
    assert method.calls == 1 and final(tmp_path / "a") == final(tmp_path / "b")


def test_items_may_hold_anything_beside_tensors(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Face:
        age: int

    class Faces(Numbers):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "face": Face(index), "pair": (torch.ones(1), "a"), "factors": {"age": index}}

    class Looking(Copy):
        def loss(self, batch):
            assert isinstance(batch["face"][0], Face) and batch["pair"][0][1] == "a" and "age" in batch["factors"][0]
            return super().loss(batch)

    run(tmp_path, Looking(), Faces(), precision="bf16", steps=2)


def test_an_empty_data_set_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        run(tmp_path, dataset=Numbers(0))


@pytest.mark.parametrize("native", [True, False])
def test_bf16_trains_where_the_device_computes_in_it_and_as_32_elsewhere(tmp_path, monkeypatch, capsys, native):
    class Watching(Copy):
        def loss(self, batch):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().loss(batch)

    seen: list[bool] = []
    monkeypatch.setattr("editkit.training.fit.computes_bf16", lambda device: native)
    method = Watching()
    run(tmp_path, method, precision="bf16", steps=2)
    assert seen == [native] * len(seen) and seen and method.net[0].weight.dtype == torch.float32
    assert [line for line in capsys.readouterr().err.splitlines() if "bf16" in line] == (
        [] if native else ["cpu does not compute in bf16 and is slow to imitate it: taking trainer.precision=32"]
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"trainer\.batch_size=0 is too small; give 1 or more"),
        ({"batch_size": 3, "devices": 2}, "multiple of 2"),
        ({"keep": 1}, r"trainer\.keep=1 .*2 or more"),
        ({"precision": "fp8"}, "32 or bf16"),
        ({"steps": None}, "no length"),
        ({"images": -5}, r"trainer\.images=-5"),
        ({"accelerator": "tpu"}, "auto, cpu, gpu"),
        ({"ema": -1.0}, r"trainer\.ema=-1\.0"),
        ({"clip_norm": 0.0}, r"trainer\.clip_norm=0\.0"),
        ({"lr_batch": 0}, r"trainer\.lr_batch=0 is too small"),
        ({"lr_rule": "cubic"}, "sqrt or linear"),
    ],
)
def test_a_wrong_trainer_value_is_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        Plan(**wrong)


def test_sample_grids_show_every_image(tmp_path):
    from editkit.training.grid import save_grid

    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 6)
    sheet = np.asarray(Image.open(save_grid(images, tmp_path / "grid.png")))
    assert sheet.shape == (2 * 4 + 2, 3 * 6 + 4, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((0, 0), (0, 8), (0, 16), (6, 0), (6, 8), (6, 16))] == [0, 64, 128, 191, 255, 255]
    laid_out = np.asarray(Image.open(save_grid(images[:4].unflatten(0, (1, 4)), tmp_path / "row.png")))
    assert laid_out.shape == (4, 4 * 6 + 6, 3)


def test_plain_lines_where_there_is_no_terminal(capsys):
    import io

    from rich.console import Console

    from editkit.training.progress import Display, clock

    text = io.StringIO()
    display = Display("copy", total=10, unit="steps", start=4, console=Console(file=text))
    figures = {"loss": 0.5, "images_per_s": 3.0, "lr/net": 1.0, "data_wait": 0.01, "tflop_per_s": 395.6}
    display.show(10, figures)
    assert text.getvalue().startswith("copy: 10/10 steps")
    assert text.getvalue().rstrip().endswith("loss 0.5 3 images/s 396 TFLOP/s")
    display.show(10, figures | {"data_wait": 0.25, "of_peak": 0.4})
    display.close()
    assert "396 TFLOP/s (40% of the peak) waiting for data 25% of the time: raise trainer.num_workers" in text.getvalue()
    assert clock(59) == "0:59" and clock(3725) == "1:02:05"


def test_the_seconds_of_interrupted_parts_are_added_up(tmp_path):
    run(tmp_path, new(), images=16)
    first = RunDir(tmp_path).seconds
    RunDir(tmp_path).note_seconds(first + 1000)
    method = new()
    run(tmp_path, method, images=40)
    assert first + 1000 <= RunDir(tmp_path).seconds < first + 1100  # kept to a tenth of a second; the second part may take less
    assert method.card()["training_seconds"] == RunDir(tmp_path).seconds
