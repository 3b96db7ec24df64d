"""editkit doctor: says what is there, and fails when something that editkit needs is broken."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from editkit.app import doctor


def test_it_looks_at_everything(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"a": np.zeros(3)}, tmp_path / "model" / "model.safetensors")
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    said: list[str] = []
    assert doctor.examine(said.append) == 0
    text = "\n".join(said)
    assert all(word in text for word in ("Python", "torch", "processors", "free in", "editkit:model", "works here"))


def test_a_cut_off_weight_file_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"a": np.zeros(1000)}, tmp_path / "model" / "model.safetensors")
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").write_bytes(whole[:-10])
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    said: list[str] = []
    assert doctor.examine(said.append) == 1
    assert any("model.safetensors cannot be read" in line for line in said)


def test_no_weights_at_all_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "ASSETS", tmp_path / "none")
    assert doctor.examine(lambda line: None) == 1


def test_slurm_may_be_absent_or_not_running(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(doctor.cluster()) == [("not here: editkit submit needs it", "")]
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/sh\necho 'gpu*|up|4 nodes|64 processors each|GPUs gpu:8|at most 1-00:00:00'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert list(doctor.cluster()) == [("gpu*, up, 4 nodes, 64 processors each, GPUs gpu:8, at most 1-00:00:00", "")]
    sinfo.write_text("#!/bin/sh\necho 'sinfo: error: Unable to contact slurm controller' >&2; exit 1\n")
    ((line, problem),) = doctor.cluster()
    assert line.startswith("installed but not running") and "Unable to contact" in line and not problem
