"""A checkpoint is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from editkit.errors import UserError
from editkit.training import checkpoint, randomness
from editkit.training.tree import pack, unpack

WEIGHTS = {"net.weight": torch.arange(6.0).view(2, 3), "net.scale": torch.tensor(2.0, dtype=torch.float64)}


def content(step):
    return {name: tensor + step for name, tensor in WEIGHTS.items()}, {"step": step, "random": [randomness.rng_state()]}


def save(folder, step, **options):
    return checkpoint.save(folder, step, *content(step), **options)


def failing(function, fail_at, error):
    """Return the function, but its call number `fail_at` raises."""
    calls = itertools.count()

    def call(*arguments, **options):
        if next(calls) == fail_at:
            raise error
        return function(*arguments, **options)

    return call


def test_what_is_saved_is_loaded(tmp_path):
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    adam.param_groups[0]["params"][0].sum().backward()
    adam.step()
    state = {"optimizer": adam.state_dict(), "none": None, "pair": (1, [2.5, "x"]), "random": randomness.rng_state()}
    snapshot = checkpoint.load(checkpoint.save(tmp_path, 7, WEIGHTS, state))
    assert all(torch.equal(snapshot.weights[name], tensor) for name, tensor in WEIGHTS.items())
    assert snapshot.state["pair"] == (1, [2.5, "x"]) and snapshot.state["none"] is None
    loaded = snapshot.state["optimizer"]
    assert torch.equal(loaded["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])
    assert loaded["param_groups"] == adam.state_dict()["param_groups"]


def test_random_generators_continue_after_a_round_trip(tmp_path):
    randomness.seed_all(3)
    path = checkpoint.save(tmp_path, 1, {}, {"random": randomness.rng_state()})
    expected = (random.random(), np.random.rand(), torch.rand(3), random.gauss(0, 1))
    randomness.seed_all(99)
    randomness.set_rng_state(checkpoint.load(path).state["random"])
    got = (random.random(), np.random.rand(), torch.rand(3), random.gauss(0, 1))
    assert expected[:2] == got[:2] and torch.equal(expected[2], got[2]) and expected[3] == got[3]


def test_no_pickle_and_nothing_that_needs_one(tmp_path):
    with pytest.raises(TypeError, match="cannot hold the function at /schedule/rule"):
        save_state = {"schedule": {"rule": lambda: 1}}
        checkpoint.save(tmp_path, 1, {}, save_state)
    path = save(tmp_path, 2)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def test_pack_and_unpack_are_inverse():
    tree = {"a": [1, (2.0, None), {"b": torch.ones(2)}], 3: "x", "n": np.arange(3, dtype=np.uint32)}
    packed, tensors = pack(tree)
    back = unpack(packed, tensors)
    assert back["a"][1] == (2.0, None) and torch.equal(back["a"][2]["b"], torch.ones(2)) and back[3] == "x"
    assert back["n"].dtype == np.uint32 and back["n"].tolist() == [0, 1, 2]


def test_at_least_two_are_kept_and_the_newest_is_found(tmp_path):
    for step in (1, 2, 9, 10, 100):
        save(tmp_path, step, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert checkpoint.newest(tmp_path).name == "step-00000100"
    assert checkpoint.newest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_skipped_by_name(tmp_path, name, damage):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes({"cut": data[:-1], "flipped": data, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="skipped the checkpoint .*step-00000002"):
        assert checkpoint.newest(tmp_path).name == "step-00000001"
    with pytest.raises(UserError, match="step-00000002 cannot be used"):
        checkpoint.load(tmp_path / "step-00000002")
    save(tmp_path, 2)  # training on from 1 writes it again
    assert checkpoint.newest(tmp_path).name == "step-00000002"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_refusing_disk_keeps_the_old_ones(tmp_path, monkeypatch, call, error):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for fail_at in {"fsync": range(5), "replace": [0], "mkdir": [1]}[call]:
        refuse = failing(getattr(os, call), fail_at, OSError(error, os.strerror(error)))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(checkpoint.CheckpointNotWritten, match="no space left|cannot write"):
                save(tmp_path, 3)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"], (call, fail_at)
        assert checkpoint.newest(tmp_path).name == "step-00000002"
    assert save(tmp_path, 3).name == "step-00000003"


def test_a_full_disk_is_recognised_when_safetensors_reports_it(tmp_path, monkeypatch):
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(checkpoint, "save_file", failing(checkpoint.save_file, 1, full))
    with pytest.raises(checkpoint.CheckpointNotWritten, match="no space left"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def _save_for_ever(folder):
    for step in range(1, 1_000_000):
        save(folder, step)


def test_sigkill_at_any_moment_leaves_a_usable_checkpoint(tmp_path):
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    moments = random.Random(0)
    for turn in range(20):
        folder = tmp_path / str(turn)
        save(folder, 0)
        process = context.Process(target=_save_for_ever, args=(folder,))
        process.start()
        time.sleep(0.01 + 0.06 * moments.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        newest = checkpoint.newest(folder)  # a warning here would be an error: no half-written folder may look finished
        snapshot = checkpoint.load(newest)
        step = snapshot.state["step"]
        assert newest.name == f"step-{step:08d}" and torch.equal(snapshot.weights["net.weight"], WEIGHTS["net.weight"] + step)
        assert len([path for path in folder.glob("step-*") if checkpoint.verify(path) is None]) >= (2 if step > 0 else 1)
