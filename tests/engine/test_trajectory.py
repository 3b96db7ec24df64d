"""Trajectories on disk: reloaded ones edit to the same bits; wrong and damaged ones are refused."""

from __future__ import annotations

import json

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from editkit.engine.guidance import ClassifierFree, Guided
from editkit.engine.invert import (
    DDIM,
    EDICT,
    OBELM,
    CycleDiffusion,
    Direct,
    EditFriendly,
    FixedPoint,
    NegativePrompt,
    NullText,
    ReNoise,
    SDEdit,
    replay,
)
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.trajectory import Trajectory
from editkit.errors import UserError
from editkit.types import Condition
from tests.engine.stand_ins import random

INVERTERS = {
    "ddim": DDIM("target", pivots=True),
    "fixed-point": FixedPoint(1),
    "edit-friendly": EditFriendly(skip=2),
    "edit-friendly, remainder": EditFriendly(eta=0.5),
    "sdedit": SDEdit(0.6),
    "renoise": ReNoise(2, (1, 3)),
    "edict": EDICT(),
    "o-belm": OBELM(),
    "cycle-diffusion": CycleDiffusion(),
    "direct": Direct(),
}


@pytest.fixture
def levels(gaussian):
    return gaussian.schedule.levels(8, spacing="leading", offset=1)


@pytest.mark.parametrize("name", INVERTERS)
def test_a_reloaded_trajectory_edits_to_the_same_bits(name, gaussian, levels, x0, noise, tmp_path):
    trajectory = INVERTERS[name].invert(gaussian, x0, levels, noise=noise(x0))
    trajectory.save(tmp_path / "a.safetensors")
    loaded = Trajectory.load(tmp_path / "a.safetensors", levels=levels)
    assert loaded.levels == levels and loaded.start == trajectory.start and loaded.settings == trajectory.settings
    assert (loaded.inverter, loaded.calls, loaded.report) == (trajectory.inverter, trajectory.calls, trajectory.report)
    assert loaded.states.keys() == trajectory.states.keys() and loaded.noises.keys() == trajectory.noises.keys()
    edit = Condition(vector=random((3, 48), 4))
    assert torch.equal(sample(gaussian, cond=edit, **replay(loaded)), sample(gaussian, cond=edit, **replay(trajectory)))


@pytest.mark.parametrize("inverter", [NullText(2), NegativePrompt()], ids=lambda inverter: inverter.name)
def test_trajectories_with_conditions(inverter, worded, levels, x0, tmp_path):
    guided = Guided(worded, ClassifierFree(7.5, Condition(tokens=torch.zeros(1, 6, 8)), interval=(0, 900)))
    whole = inverter.invert(guided, x0, levels, Condition(tokens=random((1, 6, 8), 3)))
    whole.save(tmp_path / "a.safetensors")
    loaded = Trajectory.load(tmp_path / "a.safetensors", levels=levels)
    assert loaded.settings == whole.settings and loaded.conds.keys() == whole.conds.keys()
    edit = Condition(tokens=random((3, 6, 8), 4))
    there = sample(worded, cond=edit, **replay(whole))
    assert torch.equal(sample(worded, cond=edit, **replay(loaded)), there)
    assert torch.equal(sample(worded, cond=edit, **replay(Trajectory.stack(loaded.split()))), there)
    alone = sample(worded, cond=Condition(tokens=edit.tokens[1:2]), **replay(whole.split()[1]))
    torch.testing.assert_close(alone[0], there[1], rtol=1e-9, atol=1e-9)


def test_conditions_of_side_networks_cannot_be_kept(levels, x0, tmp_path):
    cond = Condition(tokens=torch.zeros(3, 1, 1), control={"pose": Condition()})
    with pytest.raises(ValueError, match="not control or extra"):
        Trajectory(levels, 8, {8: x0}, conds={8: cond}).save(tmp_path / "a.safetensors")


def test_other_levels_are_an_error_that_says_what_to_do(gaussian, levels, x0, tmp_path):
    DDIM().invert(gaussian, x0, levels).save(tmp_path / "a.safetensors")
    others = [gaussian.schedule.levels(9, spacing="leading", offset=1), Schedule.cosine().levels(8, spacing="leading", offset=1)]
    for other in others:
        with pytest.raises(UserError, match="invert the image again"):
            Trajectory.load(tmp_path / "a.safetensors", levels=other)


def test_the_file_is_plain_safetensors_with_its_settings_in_the_metadata(gaussian, levels, x0, tmp_path):
    DDIM("target").invert(gaussian, x0, levels).save(tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        config = json.loads(file.metadata()["editkit"])
        assert sorted(file.keys()) == ["state.0", "state.8"]
    assert config["inverter"] == "ddim" and config["settings"]["query"] == "target"
    assert config["levels_digest"] == levels.digest()


def test_damaged_and_foreign_files_are_refused(gaussian, levels, x0, tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        Trajectory.load(path)
    DDIM().invert(gaussian, x0, levels).save(path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for bad in (b"", b"text", good[: len(good) // 2], good[:-1], bytes(flipped)):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="damaged"):
            Trajectory.load(path)
    path.write_bytes(good)
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["editkit"])
    save_file({"state.8": x0}, path, {"editkit": json.dumps(config | {"start": 5})})
    with pytest.raises(UserError, match="damaged"):
        Trajectory.load(path)
    save_file({"state.8": x0}, path)
    with pytest.raises(UserError, match="not a trajectory"):
        Trajectory.load(path)


def test_a_failed_save_leaves_the_old_file(gaussian, levels, x0, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    DDIM().invert(gaussian, x0, levels).save(path)
    before = path.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        DDIM("target").invert(gaussian, x0, levels).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_splitting_and_stacking_are_inverse(gaussian, levels, x0, noise):
    for inverter in (FixedPoint(1), EditFriendly()):
        whole = inverter.invert(gaussian, x0, levels, noise=noise(x0))
        again = Trajectory.stack(whole.split())
        assert torch.equal(again.x, whole.x) and again.report == whole.report and again.calls == whole.calls
        assert all(torch.equal(again.noises[i], whole.noises[i]) for i in whole.noises)
    with pytest.raises(ValueError, match="same levels"):
        Trajectory.stack([DDIM().invert(gaussian, x0, levels), DDIM("target").invert(gaussian, x0, levels)])


def test_a_trajectory_without_its_start_is_refused(levels, x0):
    with pytest.raises(ValueError, match="start level 8"):
        Trajectory(levels, 8, {0: x0})
