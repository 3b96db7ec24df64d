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
