"""A folder shared out to several processes: the same results as by one, whatever ends a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from editkit.app.edit import edit_images, shares
from editkit.app.options import EditOptions
from editkit.errors import UsageError
from tests.app import tiny
from tests.app.standin import picture, pixels

PATIENCE = 120  # seconds until the processes should have begun


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.backbone(tmp_path_factory.mktemp("model"))


def typed(source: Path, out: Path, model: Path, **more) -> EditOptions:
    overrides = [f"backbone.path={model}", "engine.batch_size=8", *more.pop("overrides", [])]
    return EditOptions(method="reconstruction", image=source, output=out, steps=2, overrides=overrides, **more)


def folder(path: Path, count: int) -> Path:
    for index in range(count):
        picture(path / f"{index:03d}.png", seed=index, size=(16, 16))
    return path


def listed(out: Path) -> Counter[str]:
    lines = [json.loads(line) for path in out.glob("editkit*.jsonl") for line in path.read_text().splitlines()]
    return Counter(line["key"] for line in lines if line["status"] == "done")


def test_two_processes_make_the_pictures_of_one(model, tmp_path, capsys):
    source, one, two = folder(tmp_path / "in", 21), tmp_path / "one", tmp_path / "two"
    (source / "bad.png").write_text("no picture")
    assert edit_images(typed(source, one, model)) == edit_images(typed(source, two, model, jobs=2)) == 1
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("failed: bad.png") for line in said) == 2, "once for each of the two commands"
    assert next(line for line in said if " images in " in line).endswith("FLOP/s")
    assert listed(two) == Counter(f"{index:03d}.png" for index in range(21))
    edit_images(typed(source, two, model, jobs=2))
    assert " images in " not in capsys.readouterr().err, "what was there is not counted as edited"
    for index in range(21):
        left, right = (pixels(out / f"{index:03d}.png").astype(int) for out in (one, two))
        assert abs(left - right).max() <= 1
    assert len(list(two.glob("editkit.*-of-2.jsonl"))) == 2


def test_five_hundred_pictures_are_each_edited_once_though_a_process_is_killed(model, tmp_path):
    source, one, two = folder(tmp_path / "in", 500), tmp_path / "one", tmp_path / "two"
    fixed = ["engine.batch_invariant=true"]
    assert edit_images(typed(source, one, model, overrides=fixed)) == 0

    words = ["--image", source, "-o", two, "--steps", 2, "--jobs", 2, f"backbone.path={model}", "engine.batch_size=8", *fixed]
    command = [sys.executable, "-m", "editkit", "edit", "--method", "reconstruction", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while len(list(two.glob("editkit.*.jsonl"))) < 2 and time.monotonic() - began < PATIENCE:
        time.sleep(0.02)
    os.kill(workers(process.pid)[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "was killed by signal 9" in said and not workers(process.pid)
    before = listed(two)
    assert 0 < len(before) < 500, "killed too late"

    assert subprocess.run(command).returncode == 0
    names = [f"{index:03d}.png" for index in range(500)]
    assert sorted(path.name for path in two.glob("*.png")) == names
    assert listed(two) == Counter(names), "none is edited twice"
    assert all(np.array_equal(pixels(one / name), pixels(two / name)) for name in names)


def workers(process: int) -> list[int]:
    """Return the processes that a process started to work for it; Python's own helper is none of them."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_shares_of_a_share_are_the_share(tmp_path):
    options = typed(tmp_path, tmp_path / "out", tmp_path, jobs=3, shard="1/2", device="cpu")
    asked = [share.shard for share, _ in shares(options)]
    assert asked == ["1/6", "3/6", "5/6"] and [first for _, first in shares(options)] == [True, False, False]
    assert sorted(place for name in asked for place in range(60)[int(name[0]) :: 6]) == list(range(60))[1::2]


def test_each_gpu_takes_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    options = typed(tmp_path, tmp_path / "out", tmp_path, jobs=2, device="cuda")
    assert [share.device for share, _ in shares(options)] == ["cuda:0", "cuda:1"]
    for wrong in ({"jobs": 3, "device": "cuda"}, {"jobs": 2, "device": "cuda:1"}):
        with pytest.raises(UsageError, match="each GPU takes one process"):
            shares(typed(tmp_path, tmp_path / "out", tmp_path, **wrong))


def test_processes_share_out_a_folder_and_there_is_at_least_one(model, tmp_path):
    with pytest.raises(UsageError, match="--image is one picture"):
        edit_images(typed(picture(tmp_path / "a.png"), tmp_path / "o.png", model, jobs=2))
    with pytest.raises(UsageError, match="at least 1"):
        EditOptions(jobs=0)
