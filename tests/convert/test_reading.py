"""Reading checkpoints as data: what is harmless comes out, and nothing that a file asks for is run."""

from __future__ import annotations

import argparse
import pickle
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from editkit.backbones.convert.reading import read_checkpoint, tensor_sets
from editkit.errors import UserError

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, file, call):
        self.file, self.call = file, call

    def __reduce__(self):
        return self.call, (f"import pathlib; pathlib.Path({str(self.file)!r}).touch()",)


def saved(path, content, *, old=False):
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def same(found, expected=TENSORS):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_torch_files_of_any_age(tmp_path, old):
    same(read_checkpoint(saved(tmp_path / "a.pt", OrderedDict(TENSORS), old=old)))


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    same(read_checkpoint(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_what_old_training_loops_left_is_read_as_data(tmp_path, old):
    content = {
        "state_dict": TENSORS,
        "best": np.float64(0.25),
        "step": np.int64(7),
        "done": np.bool_(True),
        "args": argparse.Namespace(lr=0.1, name="x"),
    }
    found = read_checkpoint(saved(tmp_path / "a.pt", content, old=old))
    same(found["state_dict"])
    assert (found["best"], found["step"], found["done"]) == (0.25, 7, True)
    assert found["args"].name == "x"


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("call", [exec, eval, __import__("os").system, print])
def test_a_file_that_asks_for_more_than_data_is_refused_by_name_and_runs_nothing(tmp_path, call, old, capsys):
    file = tmp_path / "touched"
    path = saved(tmp_path / "bad.pt", {"state_dict": TENSORS, "extra": Bomb(file, call)}, old=old)
    with pytest.raises(UserError, match=rf"asks for \S*{call.__name__}.*refused") as caught:
        read_checkpoint(path)
    assert not file.exists() and capsys.readouterr().out == ""
    assert "\n" not in str(caught.value)


def test_a_bare_pickle_is_no_way_around(tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "touched", exec), protocol=2))
    with pytest.raises(UserError):
        read_checkpoint(path)
    assert not (tmp_path / "touched").exists()


class ObjectScalar:
    def __reduce__(self):
        scalar = np.float64(0).__reduce__()[0]
        return scalar, (np.dtype("O"), b"anything")


def test_a_numpy_scalar_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"asks for numpy\.dtype"):
        read_checkpoint(saved(tmp_path / "a.pt", {"x": ObjectScalar()}))


@pytest.mark.parametrize("kind", ["cut off", "garbage", "empty"])
def test_broken_files_are_one_line(tmp_path, kind):
    path = saved(tmp_path / "a.pt", TENSORS)
    data = {"cut off": path.read_bytes()[:300], "garbage": b"not a checkpoint at all" * 20, "empty": b""}[kind]
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.pt") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_folders_missing_files_and_archives_are_named(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        read_checkpoint(tmp_path / "none.pt")
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(saved(tmp_path / "a.pt", TENSORS))
    with pytest.raises(UserError, match="unpack it"):
        read_checkpoint(tmp_path / "a.tar")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).half())
        self.register_buffer("count", torch.tensor(5))
        self.sizes = [1, 2, 3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sizes[0]


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(Inner(), nn.Linear(4, 2))
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x) * self.scale


def test_a_torchscript_archive_gives_its_state_dict_without_its_program(tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = Outer()
    torch.jit.script(module).save(str(tmp_path / "a.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("the program was loaded"))
    same(read_checkpoint(tmp_path / "a.pt"), module.state_dict())


def test_an_archive_that_asks_for_more_than_modules_is_refused(tmp_path):
    torch.jit.script(Inner()).save(str(tmp_path / "a.pt"))
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as bad:
        for name in archive.namelist():
            bomb = pickle.dumps(Bomb(tmp_path / "touched", exec), protocol=2)
            bad.writestr(name, bomb if name.endswith("/data.pkl") else archive.read(name))
    with pytest.raises(UserError, match=r"asks for \S*exec"):
        read_checkpoint(tmp_path / "b.pt")
    assert not (tmp_path / "touched").exists()


def test_sets_of_tensors_are_found_wherever_they_are():
    content = {"model": {"module.x": torch.ones(1)}, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, "epoch": 3}
    sets = dict(tensor_sets([content, {"y": torch.ones(1)}]))
    assert list(sets["0/model"]) == ["x"] and list(sets["1"]) == ["y"]
    assert "0/optimizer/state/0" in sets and "0" not in sets
    mixed = dict(tensor_sets({"module.x": torch.ones(1), "y": torch.ones(1), "n": 1}))
    assert list(mixed[""]) == ["module.x", "y"]


def test_the_callback_that_lightning_names_in_its_files_is_a_name_alone(tmp_path, monkeypatch):
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": TENSORS, "callbacks": {callback: {"best_model_path": "x"}}}, tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    same(found["state_dict"])
    assert callback not in found["callbacks"] and list(found["callbacks"].values()) == [{"best_model_path": "x"}]
