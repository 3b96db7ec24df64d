"""`editkit evaluate` of scenes from the command to the files, with tiny networks of random weights."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from editkit.app.evaluate import evaluate
from editkit.app.options import EvaluateOptions
from editkit.backbones import assets
from editkit.data.scene_classes import OF_THINGS, OF_WHOLES
from editkit.errors import UsageError, UserError
from editkit.metrics.harmony import HarmonyNet
from editkit.metrics.scene_oracle import SceneOracle
from tests.backbones import tiny_latent
from tests.tiny import write_clip

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer")  # captions are more than the tiny model reads


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with the judges of scenes and a text-to-image model."""
    folder = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    tiny_latent.folder(folder / "latent")  # its tokenizer is a bundled one: before the bundled ones are these
    SceneOracle(OF_WHOLES, OF_THINGS, widths=(8, 8, 8), features=8).save(folder / "toy-scene-oracle")
    HarmonyNet((8, 8, 8)).save(folder / "toy-harmony")
    write_clip(folder / "toy-scene-clip")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8, mlp_ratio=2)
    Dinov2Model(config).save_pretrained(folder / "toy-dino")
    return folder


@pytest.fixture(autouse=True)
def judges(home, monkeypatch):
    monkeypatch.setattr(assets, "_assets", lambda: home)


def options(home, out, method="sdedit", kind="instructions", **changes):
    overrides = [f"backbone.path={home / 'latent'}", f"evaluate={kind}", "engine.batch_size=2"]
    given = {"edits": ["recolour"], "images": 2, "steps": 2, "split": "validation", "device": "cpu", "baselines": ["no-edit"]}
    settings = {"backbone": "toy_latent", "overrides": overrides, "output": out} | given | changes
    return EvaluateOptions(methods=[method], **settings)


def figures(out, edit, method):
    return json.loads((out / "metrics.json").read_text())["edits"][edit]["methods"][method]["variants"]["raw"]["figures"]


def test_instructions_beside_all_their_baselines(home, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results -->\n<!-- /results -->\n<!-- results instructions -->\n<!-- /results instructions -->\n")
    evaluate(options(home, tmp_path / "out", baselines=[], edits=["recolour", "move"], update=readme))
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert results["evaluate"] == "instructions" and list(results["edits"]) == ["recolour", "move"]
    assert list(results["edits"]["move"]["methods"]) == ["sdedit", "no-edit", "reconstruction", "p2p"]
    assert figures(tmp_path / "out", "recolour", "no-edit")["clip_similarity"]["mean"] == pytest.approx(1)
    own, theirs = readme.read_text().split("<!-- /results -->")
    assert "recolour" not in own and "| recolour | sdedit |" in theirs and "2 scenes of the validation split" in theirs
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 scenes of the validation split" in page and "Frechet" not in page
    assert (tmp_path / "out" / "sheet-move.png").exists()


def test_domains_go_there_and_back(home, tmp_path):
    evaluate(options(home, tmp_path, kind="domains", edits=["day to night"]))
    assert figures(tmp_path, "day to night", "no-edit")["cycle"]["mean"] == 60
    assert figures(tmp_path, "day to night", "no-edit")["structure"]["mean"] == 0
    made = figures(tmp_path, "day to night", "sdedit")
    assert made["cycle"]["mean"] < 40 and made["structure"]["mean"] > 0


def test_exemplars_by_copy_and_paste(home, tmp_path):
    evaluate(options(home, tmp_path, "copy-paste", "exemplars", edits=[]))
    for method in ("copy-paste", "no-edit"):
        found = figures(tmp_path, "exemplar", method)
        assert found["outside"]["mean"] == 1 and 0 < found["harmony"]["mean"] < 1
    with open(tmp_path / "images.csv", newline="") as file:
        assert {row["variant"] for row in csv.DictReader(file) if row["method"] == "copy-paste"} == {"raw", "pasted"}


def test_a_sweep_has_an_entrant_for_each_value_and_draws_the_curve(home, tmp_path):
    asked = options(home, tmp_path, sweep=True)
    evaluate(replace(asked, overrides=[*asked.overrides, "method.noising=0.5,1.0"]))
    results = json.loads((tmp_path / "metrics.json").read_text())
    assert results["methods"] == ["sdedit noising=0.5", "sdedit noising=1.0"]
    a, b = (figures(tmp_path, "recolour", name)["psnr"]["mean"] for name in results["methods"])
    assert a != b
    with open(tmp_path / "tradeoff.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines if line["edit"] == "mean"] == [*results["methods"], "no-edit"]
    assert float(lines[0]["psnr"]) == pytest.approx(a)
    drawing = ElementTree.parse(tmp_path / "tradeoff.svg").getroot()
    lines = drawing.findall(".//{*}polyline")
    assert len(lines) == 2 and len(lines[1].get("points").split()) == 2
    dots = [title.text for title in drawing.findall(".//{*}title")]
    assert dots.count("sdedit noising=1.0") == 2 and dots.count("no-edit") == 1, "its direction is undefined"


def test_judges_that_are_missing_are_named(home, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(assets, "_assets", lambda: empty)
    with pytest.raises(UserError, match="no bundled weights named editkit:toy-scene-oracle"):
        evaluate(options(home, tmp_path / "out"))


def test_a_baseline_whose_weights_are_missing_is_named(home, tmp_path, monkeypatch):
    rest = tmp_path / "rest"
    rest.mkdir()
    for folder in assets._assets().iterdir():
        if folder.name != "toy-inpainting":
            (rest / folder.name).symlink_to(folder)
    monkeypatch.setattr(assets, "_assets", lambda: rest)
    asked = options(home, tmp_path, "copy-paste", "exemplars", edits=[], baselines=["inpaint"])
    with pytest.raises(UserError, match=r"the baseline inpaint: .*toy-inpainting.*--baseline"):
        evaluate(asked)


def test_methods_that_are_asked_different_things_are_refused(home, tmp_path):
    asked = EvaluateOptions(methods=["pbe", "p2p"], output=tmp_path)
    with pytest.raises(UsageError, match=r"different questions \(pbe exemplars, p2p instructions\)"):
        evaluate(asked)
    with pytest.raises(UsageError, match="no baseline 'p2p' for domains"):
        evaluate(options(home, tmp_path, kind="domains", baselines=["p2p"], edits=["day to night"]))


def test_a_sweep_needs_values_and_a_single_method(home, tmp_path):
    with pytest.raises(UsageError, match="a sweep needs an override with several values"):
        evaluate(options(home, tmp_path, sweep=True))
    with pytest.raises(UsageError, match="sweep them one by one"):
        EvaluateOptions(methods=["sdedit", "p2p"], sweep=True)
