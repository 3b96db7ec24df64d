"""Whatever is wrong with what a person typed: one line that names it, the right exit code, and nothing half-written."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.cli import run
from tests.app import tiny
from tests.app.standin import picture
from tests.data.test_photo import BAD


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a tiny model, trained parts, and good and bad pictures."""
    root = tmp_path_factory.mktemp("world")
    tiny.backbone(root / "model")
    tiny.backbone(root / "other", seed=7)
    tiny.backbone(root / "wide", width=16)
    tiny.trained(root / "smiling.safetensors", root / "model")
    (root / "noise.safetensors").write_bytes(b"\x00" * 100)
    tiny.trained(root / "strange.safetensors", root / "model", style="unheard of")
    torch.save({"weight": torch.zeros(2)}, root / "old.pt")
    (root / "old.ckpt").write_bytes(pickle.dumps({"weight": 1}))
    picture(root / "a.png", size=(40, 30))
    for name, (data, _) in BAD.items():
        (root / f"{name.replace(' ', '-')}.png").write_bytes(data)
    Image.new("L", (30, 40), 255).save(root / "turned-mask.png")
    Image.new("L", (40, 30), 0).save(root / "empty-mask.png")
    (root / "nothing").mkdir()
    (root / "file").write_text("mine")
    return root


def edit(world: Path, *arguments: str, image: str = "a.png") -> list[str]:
    start = ["edit", "--method", "asyrp", "--image", str(world / image), "--weights", str(world / "smiling.safetensors")]
    return [*start, "--steps", "3", f"backbone.path={world}/model", *arguments]


def refused(capsys, arguments: list[str], code: int) -> str:
    """Run a command that must fail and return its one line."""
    assert run(arguments) == code
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and said.startswith("editkit: ") and "Traceback" not in said, said
    return said


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(world, tmp_path, capsys, name):
    file = f"{name.replace(' ', '-')}.png"
    said = refused(capsys, edit(world, "-o", str(tmp_path / "out" / "o.png"), image=file), 1)
    assert file in said
    assert not list(tmp_path.iterdir()), "not even a folder"


COMMANDS = {
    "no inputs": (["edit"], 2, "needs --method"),
    "no image": (["edit", "--method", "asyrp"], 2, "asyrp needs --image"),
    "missing image": (["edit", "--method", "asyrp", "--image", "{}/none.png"], 1, r"no file or folder .*none\.png"),
    "empty folder": (["edit", "--method", "asyrp", "--image", "{}/nothing"], 1, "no pictures"),
    "unknown method": (["edit", "--method", "asirp", "--image", "{}/a.png"], 2, "Did you mean 'asyrp'"),
    "unknown key": (["edit", "--method", "asyrp", "--image", "{}/a.png", "method.n_tst=3"], 2, "n_test"),
    "useless input": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--reference", "{}/a.png"], 2, "no use for --ref"),
    "no samples": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--samples", "0"], 2, "at least 1"),
    "no steps": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--steps", "0"], 2, "at least 1"),
    "fit without mask": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--fit", "mask"], 2, "--mask"),
    "mask of another size": (
        ["edit", "--method", "asyrp", "--image", "{}/a.png", "--mask", "{}/turned-mask.png"], 1, "30 x 40 .* 40 x 30",
    ),
    "empty mask": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--mask", "{}/empty-mask.png"], 1, "selects nothing"),
    "missing mask": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--mask", "{}/no.png"], 1, r"no\.png \(--mask\)"),
    "folder as mask": (["edit", "--method", "asyrp", "--image", "{}/a.png", "--mask", "{}/nothing"], 2, "is a folder"),
    "no such device": (["invert", "--image", "{}/a.png", "--device", "cuda:99", "backbone.path={}/model"], 1, "CUDA"),
    "no device": (["invert", "--image", "{}/a.png", "--device", "gpu", "backbone.path={}/model"], 2, "cpu, cuda"),
    "unknown inverter": (["invert", "--image", "{}/a.png", "--inverter", "fixed_point"], 2, "Did you mean 'fixed-point'"),
    "invert nothing": (["invert"], 2, "needs --image"),
    "invert a text": (["invert", "--image", "{}/text.png", "-o", "{}/t.safetensors"], 1, "not a picture"),
    "invert into a jpeg": (["invert", "--image", "{}/a.png", "-o", "o.jpg"], 2, "safetensors"),
    "unknown solver": (["sample", "--solver", "dpmpp", "backbone.path={}/model", "-o", "{}/s.png"], 2, "dpmpp-2m"),
    "sample into a jpeg": (["sample", "-o", "s.jpg"], 2, "png"),
}  # fmt: skip


@pytest.mark.parametrize("what", COMMANDS)
def test_bad_commands(world, tmp_path, capsys, monkeypatch, what):
    arguments, code, expected = COMMANDS[what]
    monkeypatch.chdir(tmp_path)
    before = sorted(world.iterdir())
    said = refused(capsys, [argument.format(world) for argument in arguments], code)
    assert re.search(expected, said), said
    assert not list(tmp_path.rglob("*.png")) and sorted(world.iterdir()) == before


WEIGHTS = {
    "pickle": ("old.pt", 1, r"editkit convert .*old\.pt"),
    "checkpoint": ("old.ckpt", 1, "pickle"),
    "missing": ("new.safetensors", 1, "no weights"),
    "no safetensors": ("noise.safetensors", 1, "not a readable safetensors"),
    "no trained part": ("model/unet/diffusion_pytorch_model.safetensors", 1, "no editkit card"),
    "damaged card": ("strange.safetensors", 1, "do not fit asyrp"),
    "empty path": ("=", 2, "NAME"),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_bad_weights(world, tmp_path, capsys, what):
    name, code, expected = WEIGHTS[what]
    path = name if name == "=" else str(world / name)
    arguments = ["edit", "--method", "asyrp", "--image", str(world / "a.png"), "--weights", path, f"backbone.path={world}/model"]
    said = refused(capsys, [*arguments, "-o", str(tmp_path / "o.png")], code)
    assert re.search(expected, said), said
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("model", ["other", "wide"])
def test_weights_of_another_backbone(world, tmp_path, capsys, model):
    said = refused(capsys, [*edit(world, "-o", str(tmp_path / "o.png"))[:-3], f"backbone.path={world}/{model}"], 1)
    assert "trained on another backbone" in said and model in said


def test_a_prompt_that_the_weights_are_not_for(world, capsys):
    said = refused(capsys, edit(world, "--prompt", "an angry face"), 2)
    assert "'a smiling face'" in said and "'an angry face'" in said


def test_no_weights_for_this_backbone(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, ["edit", "--method", "asyrp", "--image", str(world / "a.png"), f"backbone.path={world}/model"], 1)
    assert "editkit train recipe=asyrp" in said


@pytest.mark.parametrize("output", ["file/o.png", "/proc/o.png", "/proc/new/folder/"])
def test_unwritable_outputs(world, capsys, output):
    """Found before the model is loaded: there is none at that path."""
    arguments = edit(world, "-o", str(world / output))
    said = refused(capsys, [argument.replace("/model", "/nowhere") for argument in arguments], 1)
    assert "cannot write" in said
    assert (world / "file").read_text() == "mine"


def test_somebody_elses_file(world, capsys):
    before = (world / "turned-mask.png").read_bytes()
    assert "not written by editkit" in refused(capsys, edit(world, "-o", str(world / "turned-mask.png")), 1)
    assert (world / "turned-mask.png").read_bytes() == before


@pytest.mark.parametrize("output", ["o.jpg", "o.safetensors"])
def test_outputs_that_are_no_png(world, capsys, output):
    assert "-o o.png" in refused(capsys, edit(world, "-o", output), 2)


def test_a_folder_with_some_bad_pictures(world, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    for n in range(3):
        picture(source / f"good{n}.png", n, (20 + n, 16))
    for name, (data, _) in BAD.items():
        (source / f"{name.replace(' ', '-')}.png").write_bytes(data)
    assert run(["edit", *edit(world)[1:3], "--image", str(source), *edit(world)[5:], "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and f"3 of {3 + len(BAD)} done, {len(BAD)} failed" in said
    assert sorted(path.name for path in out.glob("*.png")) == ["good0.png", "good1.png", "good2.png"]
    for n in range(3):
        with Image.open(out / f"good{n}.png") as image:
            assert np.asarray(image).shape == (16, 20 + n, 3)


def test_a_folder_whose_output_is_a_file(world, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in" / "a.png")
    said = refused(capsys, ["edit", "--method", "asyrp", "--image", str(tmp_path / "in"), "-o", str(tmp_path / "o.png")], 2)
    assert "must be one too" in said
