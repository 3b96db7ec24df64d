"""editkit convert as a user meets it: recognised, whole or absent, with a card, one line for a mistake."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from editkit.app import convert as app
from editkit.app.artefacts import choose
from editkit.app.convert import ConvertOptions, convert
from editkit.backbones.convert.layouts import LAYOUTS, find
from editkit.backbones.pixel import load_pixel
from editkit.cli import run
from editkit.errors import UsageError, UserError
from tests.convert.reference import Weights, ddpm, delta

SMILING = "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"
SHAPE = {"ch": 32, "mult": (1, 2), "layers": 1, "attended": (1,)}


@pytest.fixture(scope="module")
def network():
    weights = Weights()
    with torch.no_grad():
        ddpm(weights, torch.zeros(1, 3, 16, 16), torch.zeros(1), **SHAPE)
    return dict(weights)


@pytest.fixture(scope="module")
def block():
    weights = Weights()
    with torch.no_grad():
        delta(weights, torch.zeros(1, 32, 4, 4), torch.zeros(1, 32), "ddpm")
    return dict(weights)


@pytest.fixture
def checkpoint(tmp_path, network):
    torch.save(network, tmp_path / "faces.ckpt")
    return tmp_path / "faces.ckpt"


def options(source, *settings, **more):
    return ConvertOptions(source=source, settings=list(settings), **more)


def test_a_network_becomes_a_folder_with_a_card(checkpoint, tmp_path):
    path, told = convert(options(checkpoint, "size=16", licence="MIT"))
    assert path == tmp_path / "faces"
    assert load_pixel(path).sample_shape == (3, 16, 16)
    card = json.loads((path / "card.json").read_text())
    data = checkpoint.read_bytes()
    assert card["source"] == {"file": "faces.ckpt", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert (card["layout"], card["licence"], card["image_size"], card["channels"]) == ("ddpm", "MIT", 16, [32, 64])
    assert told[0].startswith("ddpm: parameters ") and told[-1] == f"use: backbone.path={path}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces", "faces.ckpt"]


def test_a_trained_edit_becomes_a_file_that_edit_reads(tmp_path, block):
    torch.save({"0": block, "optimizer": {}}, tmp_path / SMILING)
    path, told = convert(options(tmp_path / SMILING))
    assert path == (tmp_path / SMILING).with_suffix(".safetensors")
    (chosen,) = choose("asyrp", [str(path)], prompt="smiling face")
    assert (chosen.target, chosen.card["licence"], chosen.card["source"]["part"]) == ("smiling face", "not given", "0")
    assert f"use: editkit edit --method asyrp --weights {path}" in told
    named, _ = convert(options(tmp_path / SMILING, prompt="a grin", output=tmp_path / "grin.safetensors"))
    assert choose("asyrp", [str(named)], prompt="a grin")


def test_licence_is_said_to_be_unknown_when_it_is_not_given(checkpoint):
    path, _ = convert(options(checkpoint))
    assert json.loads((path / "card.json").read_text())["licence"] == "not given"


def test_nothing_is_replaced_by_accident(checkpoint, tmp_path):
    path, _ = convert(options(checkpoint))
    with pytest.raises(UsageError, match="--force replaces it"):
        convert(options(checkpoint))
    (path / "old").write_text("")
    convert(options(checkpoint, force=True))
    assert not (path / "old").exists() and (path / "unet").is_dir()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not what editkit convert wrote"):
        convert(options(checkpoint, output=mine, force=True))
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_breaks_off_leaves_what_was_there(checkpoint, tmp_path, monkeypatch, error):
    path, _ = convert(options(checkpoint))
    before = sorted(str(p) for p in tmp_path.rglob("*"))

    def fail(*arguments):
        raise error

    monkeypatch.setattr(app, "_flush", fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        convert(options(checkpoint, force=True))
    with pytest.raises((UserError, KeyboardInterrupt)):
        convert(options(checkpoint, output=tmp_path / "new"))
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert load_pixel(path)


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("")

    def refuse(*arguments):
        assert not target.exists(), "the old folder has made room"
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(app.Path, "replace", refuse)
    with pytest.raises(UserError, match="cannot write .*Permission denied"):
        app.publish(target, lambda draft: draft.mkdir())
    assert [p.name for p in target.iterdir()] == ["old"] and [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colour=red"], "colour= is unknown for the layout ddpm"),
        (["sized=16"], "Did you mean 'size'"),
        (["other.ckpt"], "not of the form KEY=VALUE"),
        (["size=big"], "size=big is not a whole number"),
        (["part=ema"], "part=ema is not in faces.ckpt"),
        (["--layout", "ddmp"], "Did you mean 'ddpm'"),
        (["--layout", "clip"], "not in the layout clip"),
        (["--prompt", "a smile"], "leave out --prompt"),
        (["-o", "x.safetensors"], "becomes a folder"),
    ],
)
def test_mistakes_are_one_line(checkpoint, capsys, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(["convert", str(checkpoint), *words]) in (1, 2)
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces.ckpt"]


def test_the_command_prints_the_path_alone_on_stdout(checkpoint, capsys, tmp_path):
    assert run(["convert", str(checkpoint), "size=16", "-o", str(tmp_path / "out"), "--licence", "MIT"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n" and "ddpm: " in err
    assert run(["convert"]) == 2


def test_a_trained_edit_is_no_folder(tmp_path, block):
    torch.save({"0": block}, tmp_path / SMILING)
    with pytest.raises(UsageError, match=r"one file that ends in \.safetensors"):
        convert(options(tmp_path / SMILING, output=tmp_path / "folder"))


def test_an_unknown_layout_shows_three_names_and_what_is_known():
    content = {"model": {f"layer{n}.weight": torch.ones(1) for n in range(9)}}
    with pytest.raises(UserError, match=r"layer0\.weight, layer1\.weight, layer2\.weight\. Known are ddpm, adm") as caught:
        find("x.pt", content)
    assert "layer3" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="holds no tensors with names"):
        find("x.pt", [1, 2, 3])


def test_of_several_sets_the_average_is_taken_else_the_last(network):
    wrapped = {f"module.{name}": value for name, value in network.items()}
    training_loop = [wrapped, {"state": {0: {"step": torch.ones(1)}}}, 7, network]
    found = find("x.ckpt", training_loop)
    assert (found.place, found.others) == ("3", ("0",)) and found.tensors.keys() == network.keys()
    assert find("x.ckpt", {"ema": network, "model": wrapped}).place == "ema"
    assert find("x.ckpt", training_loop, part="0").place == "0"


def test_every_layout_has_a_name_marks_and_a_summary():
    pixels, towers = ["ddpm", "adm", "diffusionclip", "asyrp"], ["clip", "irse50", "lpips"]
    autoencoders = ["diffae", "diffae-latent", "diffae-classifier"]
    assert list(LAYOUTS) == [*pixels, *towers, "sd", "pbe", "controlnet", "cyclenet", "v-diffusion", *autoencoders]
    for layout in LAYOUTS.values():
        assert layout.summary and layout.marks and all(layout.marks)
