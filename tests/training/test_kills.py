"""SIGKILL at any byte of a checkpoint, between flushes, rename and pruning: nothing whole is lost, the end is the same."""

from __future__ import annotations

import multiprocessing
import signal
import warnings

import pytest
import torch

from editkit.training import checkpoint
from editkit.training.rundir import RunDir
from tests.training.killing import KINDS, Moment, moments
from tests.training.test_fit import SCHEDULE, final, rows, run
from tests.training.toys import Copy, Numbers


class Fatal(Numbers):
    """Reading an item may be the moment."""

    def __init__(self, moment):
        super().__init__()
        self.moment = moment

    def __getitem__(self, index):
        self.moment.comes("read")
        return super().__getitem__(index)


class Watched(Copy):
    """Writes down at which step a process began."""

    def __init__(self, note):
        torch.manual_seed(0)
        super().__init__(scheduler=SCHEDULE)
        self.note = note

    def updates(self, batch):
        if not self.note.exists():
            with self.note.open("w") as file:
                file.write(str(self.stepper.steps))
        yield from super().updates(batch)


def _dies(folder, moment, steps):
    torch.set_num_threads(1)
    moment.install()
    run(folder, Watched(folder / "began"), Fatal(moment), steps=steps, save_every_s=0)


def _number(path):
    return int(path.name.removeprefix("step-")) if path else 0


def _newest(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a broken checkpoint that looks newer would be named in one
        return _number(checkpoint.newest(RunDir(folder).checkpoints))


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_byte_a_run_ends_bit_identical(tmp_path, kills):
    steps = 2 * kills
    torch.set_num_threads(1)
    run(tmp_path / "whole", steps=steps)  # warms this process up for its children
    folder, context = tmp_path / "parts", multiprocessing.get_context("fork")
    folder.mkdir()
    for moment in moments(kills):
        before = _newest(folder)
        (folder / "began").unlink(missing_ok=True)
        process = context.Process(target=_dies, args=(folder, moment, steps))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{moment} did not come"
        assert before <= _newest(folder) < steps, moment
        if (folder / "began").exists():
            assert int((folder / "began").read_text()) == before, f"restarted elsewhere after {moment}"
    assert _newest(folder) > 0
    outcome = run(folder, steps=steps, save_every_s=0)
    assert outcome.steps == steps and outcome.resumed is not None
    assert final(folder) == final(tmp_path / "whole") and rows(folder) == rows(tmp_path / "whole")
    assert not list(RunDir(folder).checkpoints.glob(".draft-*"))


def _saves_until_killed(folder, moment):
    moment.install()
    for step in range(1, 100):
        checkpoint.save(folder, step, {"w": torch.full((100,), float(step))}, {"step": step})


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"read"}))
def test_the_moments_really_come(tmp_path, kind):
    process = multiprocessing.get_context("fork").Process(target=_saves_until_killed, args=(tmp_path, Moment(kind, 30)))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    drafts = list(tmp_path.glob(".draft-*"))
    if kind == "write":
        assert [file.stat().st_size for file in drafts[0].iterdir()] == [30] and not checkpoint.saved(tmp_path)
    elif kind == "remove":
        assert len(checkpoint.saved(tmp_path)) == 3, "killed while the oldest went"
    else:
        assert drafts and checkpoint.newest(tmp_path)
