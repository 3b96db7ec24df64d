"""editkit data render, check and preview."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.app.check import check_data, needed
from editkit.app.data import PreviewOptions, preview
from editkit.app.sheet import sheet
from editkit.cli import run
from editkit.data.files import provenance
from editkit.data.published.known import recognised
from editkit.data.published.write import WRITERS
from editkit.data.toyworld.world import sample_at
from editkit.training.order import Order

RECIPE = """# @package _global_
card:
  family: full
  needs: {needs}
{more}
"""


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (20, 20), (60 * k, 90, 90)).save(root / f"images/{k}.png")
    return root


@pytest.fixture
def conf(tmp_path):
    """Return a function that writes a recipe with a card and returns the folder for --conf."""

    def write(name, needs, more=""):
        (tmp_path / "conf/recipe").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"conf/recipe/{name}.yaml").write_text(RECIPE.format(needs=needs, more=more))
        return tmp_path / "conf"

    return write


def lines(findings):
    return {(finding.kind, finding.text.partition(":")[0]) for finding in findings}


def test_a_sound_folder_is_ok(photos):
    findings = check_data(photos)
    assert [finding.kind for finding in findings] == ["ok"] and "4 pictures" in findings[0].text
    assert run(["data", "check", str(photos)]) == 0


def test_what_a_method_lacks_is_said_line_by_line(photos, conf, capsys):
    folder = conf("exemplar", "[image, mask, reference, prompt]")
    (photos / "masks").mkdir()
    for k in range(4):
        Image.new("L", (20, 20), 255).save(photos / f"masks/{k}.png")
    findings = check_data(photos, "exemplar", conf=[folder])
    assert lines(findings) >= {("ok", "masks"), ("missing", "references, which exemplar needs")}
    assert run(["data", "check", str(photos), "--for", "exemplar", "--conf", str(folder)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("missing") and "put 0.png into references/" in line for line in printed)
    assert len(printed) == 3


def test_a_card_may_say_what_training_needs(photos, conf):
    folder = conf("captioned", "[image, prompt]", "  data: [images, captions]")
    assert needed("captioned", [folder]) == ["captions"]
    (photos / "metadata.jsonl").write_text(json.dumps({"file_name": "images/0.png", "text": "dark"}))
    missing = [f.text for f in check_data(photos, "captioned", conf=[folder]) if f.kind == "missing"]
    assert len(missing) == 1 and "3 of 4 pictures (images/1.png, images/2.png, images/3.png)" in missing[0]
    assert '"text"' in missing[0] and "metadata.jsonl" in missing[0]


def test_every_bad_file_has_its_line(photos, capsys):
    (photos / "images/empty.png").touch()
    (photos / "images/text.png").write_text("hello")
    (photos / "masks").mkdir()
    Image.new("L", (5, 5), 255).save(photos / "masks/2.png")
    Image.new("L", (20, 20), 255).save(photos / "masks/nobody.png")
    kinds = [finding.kind for finding in check_data(photos)]
    assert kinds.count("bad") == 3 and kinds.count("note") == 1
    assert run(["data", "check", str(photos)]) == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("empty.png", "text.png", "masks/2.png", "masks/nobody"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "{}/nowhere"], 1, "there is no folder"),
        (["check", "{}/photos", "--for", "asyrpp"], 2, "no recipe 'asyrpp'"),
        (["render", "--domain", "fases", "-o", "{}/out"], 2, "Did you mean 'faces'"),
        (["render", "--layout", "cocoo", "-o", "{}/out"], 2, "Did you mean 'coco'"),
        (["render", "--layout", "coco", "-o", "{}/out"], 2, "--domain scenes"),
        (["preview", "data=coco", "data.root={}/photos", "-o", "{}/p.png"], 1, "is not laid out like COCO"),
        (["render", "-n", "0", "-o", "{}/out"], 2, "equal to 1"),
        (["preview", "data=folder", "data.root={}/nowhere", "-o", "{}/p.png"], 1, "there is no folder"),
        (["preview", "--images", "0", "-o", "{}/p.png"], 2, "at least 1"),
        (["preview", "data=fases", "-o", "{}/p.png"], 2, "fases"),
    ],
)
def test_mistakes_are_one_line(photos, tmp_path, capsys, arguments, code, message):
    assert run(["data", *(text.format(tmp_path) for text in arguments)]) == code
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1] and "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists() and not (tmp_path / "p.png").exists()


def test_render_writes_a_folder_that_checks(tmp_path, capsys):
    command = ["data", "render", "--domain", "faces", "-n", "4", "--size", "16", "-o", str(tmp_path / "faces")]
    assert run(command) == 0 and run(command) == 0
    assert str(tmp_path / "faces") in capsys.readouterr().out
    assert len(list((tmp_path / "faces/images").iterdir())) == 4
    assert run(["data", "check", str(tmp_path / "faces")]) == 0


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_is_written_checked_and_shown(tmp_path, conf, capsys, layout):
    folder, needs = conf("lamp", "[image, mask, reference]"), tmp_path / layout
    command = ["data", "render", "--domain", "scenes", "--layout", layout, "-n", "3", "--size", "64", "-o", str(needs)]
    assert run(command) == 0 and run(["data", "check", str(needs)]) == 0
    capsys.readouterr()
    objects = layout in ("coco", "openimages")
    assert run(["data", "check", str(needs), "--for", "lamp", "--conf", str(folder)]) == (0 if objects else 1)
    printed = capsys.readouterr().out.splitlines()
    assert f"data={recognised(needs).name}" in printed[0]
    missing = [line for line in printed if line.startswith("missing")]
    assert any("references, which lamp needs" in line for line in missing) != objects
    name = recognised(needs).name
    overrides = [f"data={name}", f"data.root={needs}", "data.size=64"]
    assert run(["data", "preview", *overrides, "-o", str(tmp_path / "p.png")]) == 0
    assert provenance(tmp_path / "p.png")["preview"] == ("Objects" if objects else "Pairs")


def test_what_a_layout_cannot_hold_is_looked_for_elsewhere(tmp_path, conf, capsys):
    folder = conf("talk", "[image, instruction, sketch]")
    assert run(["data", "render", "--domain", "scenes", "--layout", "coco", "-n", "2", "-o", str(tmp_path / "c")]) == 0
    assert run(["data", "check", str(tmp_path / "c"), "--for", "talk", "--conf", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "instructions, which talk needs: COCO has none; expected one of data=magicbrush" in printed
    assert "sketches, which talk needs: COCO has none; expected a plain folder of images/ and sketches/" in printed
    (tmp_path / "c/annotations/captions_train2017.json").unlink()
    captions = check_data(tmp_path / "c", "told", conf=[conf("told", "[image]", "  data: [captions]")])
    assert "2 of 2 pictures" in captions[-1].text and "put captions_train2017.json into annotations/" in captions[-1].text


def test_preview_shows_the_first_items_of_training(tmp_path):
    out = tmp_path / "sheet.png"
    options = PreviewOptions(overrides=["data.train=5", "data.size=16"], images=4, output=out)
    assert preview(options) == out
    first = out.read_bytes()
    assert provenance(out)["items"] == 5 and Image.open(out).width > 300
    assert preview(options) == out and out.read_bytes() == first
    shown = np.asarray(Image.open(out))[8:168:10, 8:168:10]  # the first panel, enlarged ten times
    _, index = next(iter(Order(5, batch_size=4, seed=0)))[0]
    assert np.array_equal(shown, sample_at("train", index, 16).image)
    other = PreviewOptions(overrides=["data.train=5", "data.size=16", "seed=1"], images=4, output=out)
    preview(other)
    assert out.read_bytes() != first


def test_a_folder_can_be_previewed(photos, tmp_path):
    assert run(["data", "preview", "data=folder", f"data.root={photos}", "-o", str(tmp_path / "p.png")]) == 0
    colours = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / "p.png")).reshape(-1, 3)}
    assert {(60, 90, 90), (120, 90, 90), (0, 90, 90), (180, 90, 90)} & colours


def test_a_sheet_shows_every_picture_of_an_item():
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 8, 8)
    blue = torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(3, 8, 8)
    item = {"image": red, "mask": torch.ones(1, 8, 8), "references": (blue,), "key": "a", "caption": "word " * 60, "labels": None}
    page = np.asarray(sheet([item]))
    assert all((page == np.array(colour)).all(axis=-1).sum() >= 160 * 160 for colour in ((255, 0, 0), (0, 0, 255)))
    assert page.shape[1] > 3 * 160
    with pytest.raises(ValueError, match="at least one"):
        sheet([])
