"""Full and read-only disks: asked before, met for real, and never the end of what was saved."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import resource
import shutil

import pytest
import torch

from editkit.app.train import export
from editkit.errors import UserError
from editkit.training import checkpoint, space
from editkit.training.method import Method
from editkit.training.rundir import RunDir
from editkit.training.space import bytes_of
from tests.disks import PAGE, fill, read_only, small_disk
from tests.training.test_checkpoint import save
from tests.training.test_fit import final, rows, run
from tests.training.toys import Numbers, new

Usage = collections.namedtuple("Usage", "total used free")


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 2**20) as folder:
        yield folder


class Eventful(Numbers):
    """Calls a function when item number `at` of the run is read."""

    def __init__(self, **events):
        super().__init__()
        self.reads, self.events = 0, {int(name.removeprefix("at_")): call for name, call in events.items()}

    def __getitem__(self, index):
        self.reads += 1
        self.events.get(self.reads, lambda: None)()
        return super().__getitem__(index)


def test_the_size_is_known_before_and_not_too_small(tmp_path):
    run(tmp_path, steps=4)
    path = checkpoint.newest(RunDir(tmp_path).checkpoints)
    snapshot = checkpoint.load(path)
    expected = bytes_of([snapshot.weights, snapshot.state])
    assert size(path) <= expected + space.FILES and expected <= 2.5 * size(path)
    large = {"a": torch.zeros(1000, 1000), "b": torch.zeros(10, dtype=torch.float64)}
    assert 4_000_080 <= bytes_of(large) <= 4_001_000


def test_a_checkpoint_that_would_not_fit_is_not_begun(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 10**9, 30_000))
    monkeypatch.setattr(checkpoint, "_write", lambda *arguments: pytest.fail("it was begun"))
    with pytest.raises(checkpoint.CheckpointNotWritten) as refused:
        save(tmp_path, 3)
    said = str(refused.value)
    assert "0.1 MiB are needed, 0.0 MiB are free in" in said and str(tmp_path) in said and "\n" not in said
    assert [path.name for path in checkpoint.saved(tmp_path)] == ["step-00000002", "step-00000001"]


def test_a_run_says_at_its_start_that_it_will_not_fit(tmp_path, monkeypatch, recwarn):
    run(tmp_path / "whole")
    assert not [one for one in recwarn if "left for" in str(one.message)]
    one = bytes_of(checkpoint.load(checkpoint.newest(RunDir(tmp_path / "whole").checkpoints)).state["stepper"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 2 * one + space.FILES))
    said = r"no space left for 3 more checkpoints of 0.0 MiB and the export: .*free in .*tight"
    with pytest.warns(UserWarning, match=said), pytest.raises(UserError, match="no space left for a checkpoint"):
        run(tmp_path / "tight")


def test_a_run_outlives_a_full_disk(tmp_path, disk):
    run(tmp_path / "whole")
    data = Eventful(at_9=lambda: fill(disk), at_21=lambda: (disk / "filler").unlink())
    said = r"no space left for a checkpoint: .* are needed, 0.0 MiB are free in .*previous ones"
    with (
        pytest.warns(UserWarning, match=said),
        pytest.warns(UserWarning, match=r"cannot write .*step-\d+.png .*training goes on"),
    ):
        run(disk / "run", dataset=data, save_every_s=0, log_every=1, sample_every=1)
    assert final(disk / "run") == final(tmp_path / "whole")
    assert rows(disk / "run")[-1]["step"] == "8"


def test_a_run_that_ends_on_a_full_disk_fails_and_the_same_call_finishes_it(tmp_path, disk):
    run(tmp_path / "whole")
    data = Eventful(at_21=lambda: fill(disk))
    with pytest.warns(UserWarning, match="no space left"), pytest.raises(UserError, match="no space left for a checkpoint"):
        run(disk / "run", dataset=data, save_every_s=0)
    assert final(disk / "run")[0] == "step-00000004"
    (disk / "filler").unlink()
    assert run(disk / "run").resumed.name == "step-00000004"
    assert final(disk / "run") == final(tmp_path / "whole")


@pytest.mark.parametrize("pages", range(0, 16, 2))
def test_a_disk_that_fills_up_while_a_checkpoint_is_written(disk, monkeypatch, pages):
    """The space was there when it was asked for."""
    save(disk / "run", 1)
    save(disk / "run", 2)
    monkeypatch.setattr(checkpoint, "lacking", lambda *arguments: None)
    fill(disk, leave=pages * PAGE)
    with contextlib.suppress(checkpoint.CheckpointNotWritten):
        save(disk / "run", 3)
        assert pages >= 8, "it was said to be written"
    assert not list((disk / "run").glob(".draft-*"))
    newest = checkpoint.newest(disk / "run")
    step = checkpoint.load(newest).state["step"]
    assert newest.name == f"step-{step:08d}" and step >= 2 and len(checkpoint.saved(disk / "run")) == 2


def test_the_export_of_a_full_disk_is_tried_again(tmp_path, disk):
    method = new(width=200)
    fill(disk, leave=8 * PAGE)
    with pytest.raises(UserError, match=r"cannot write .*export .*; training is saved, the same command tries again") as refused:
        export(method, RunDir(disk))
    assert "\n" not in str(refused.value) and not list(disk.glob(".export*"))
    (disk / "filler").unlink()
    assert export(method, RunDir(disk))[0].is_file()


def _saves_under_a_limit(folder, limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(checkpoint.CheckpointNotWritten, match="cannot write a checkpoint .*the previous ones are kept"):
        save(folder, 2)


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_files_that_may_not_grow(tmp_path, limit):
    """A quota without root: the system refuses every byte beyond the limit."""
    save(tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=_saves_under_a_limit, args=(tmp_path, limit))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] and checkpoint.newest(tmp_path)


def test_a_run_outlives_a_disk_that_turns_read_only(tmp_path):
    run(tmp_path / "whole")
    folder = RunDir(tmp_path / "run").checkpoints
    with contextlib.ExitStack() as mounts:
        data = Eventful(at_9=lambda: mounts.enter_context(read_only(folder)), at_21=mounts.close)
        with pytest.warns(UserWarning, match="cannot write a checkpoint .*Read-only file system.*previous ones are kept"):
            run(tmp_path / "run", dataset=data, save_every_s=0)
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_on_a_read_only_disk_a_run_ends_as_not_saved(tmp_path):
    run(tmp_path / "run", steps=4, save_every_s=0)
    folder, before = RunDir(tmp_path / "run").checkpoints, final(tmp_path / "run")
    with contextlib.ExitStack() as mounts:
        data = Eventful(at_2=lambda: mounts.enter_context(read_only(folder)))
        with pytest.raises(checkpoint.CheckpointNotWritten, match="Read-only"):
            run(tmp_path / "run", dataset=data)
    assert final(tmp_path / "run") == before
    with read_only(tmp_path / "run"), pytest.raises(UserError, match="cannot write to the run folder .*Read-only"):
        run(tmp_path / "run")


def test_every_method_says_how_much_it_exports(tmp_path):
    method: Method = new(width=300)
    files = export(method, RunDir(tmp_path))
    assert method.exported_bytes() == pytest.approx(sum(file.stat().st_size for file in files), rel=0.05)
