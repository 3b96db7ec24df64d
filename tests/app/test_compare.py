"""`editkit compare` from options to files, with methods that need no network."""

from __future__ import annotations

import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from editkit.app import compare as module
from editkit.app.compare import compare
from editkit.app.loaded import Loaded
from editkit.app.options import CompareOptions
from editkit.data.files import provenance
from editkit.errors import UsageError, UserError
from editkit.types import EditResult
from tests.app.standin import SIZE, Inverter, picture, pixels


class Brighter(Inverter):
    """Adds light, and needs an instruction."""

    name, needs = "brighter", ("image", "instruction")

    def edit(self, requests, state):
        assert all(request.instruction == "more light" for request in requests)
        images = super().edit(requests, state).images
        return EditResult((-images + 0.25).clamp(-1, 1), scores={"network_calls": [7.0] * len(requests)})


@pytest.fixture
def methods(monkeypatch):
    editors = {"invert": Inverter(), "brighter": Brighter()}
    cards = {"invert": {"needs": ["image"]}, "brighter": {"needs": ["image", "instruction"]}}
    asked = {}

    def compose_for(options, verb):
        return OmegaConf.create({"card": cards[options.method], "backbone": {"path": "models/mine"}, "name": options.method})

    def load_editor(cfg, name, *, weights=(), **chosen):
        asked[name] = list(weights)
        return Loaded(name, editors[cfg.name], SIZE, batch_size=2, provenance={"method": name})

    monkeypatch.setattr(module, "compose_for", compose_for)
    monkeypatch.setattr(module, "load_editor", load_editor)
    return editors, asked


def options(image, *names, **more) -> CompareOptions:
    return CompareOptions(methods=list(names) or ["invert", "brighter"], image=image, instruction="more light", **more)


def test_every_method_edits_every_picture_at_full_resolution(methods, tmp_path, capsys):
    for n in range(3):
        picture(tmp_path / "in" / f"{n}.png", n)
    assert compare(options(tmp_path / "in", output=tmp_path / "out")) == 0
    made = sorted(path.name for path in (tmp_path / "out").glob("*.*.png"))
    assert made == sorted(f"{n}.{name}.png" for n in range(3) for name in ("invert", "brighter"))
    before, after = pixels(tmp_path / "in" / "1.png"), pixels(tmp_path / "out" / "1.invert.png")
    assert after.shape == before.shape and not np.array_equal(after, before)
    assert provenance(tmp_path / "out" / "1.invert.png")["method"] == "invert"
    said = capsys.readouterr().out
    assert "brighter" in said and str(tmp_path / "out" / "report.html") in said


def test_the_figures_are_the_methods_own_and_say_what_is_undefined(methods, tmp_path):
    assert compare(options(picture(tmp_path / "a.png"), output=tmp_path / "out")) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    assert list(found) == ["invert", "brighter"]
    assert found["brighter"]["network_calls"] == 7 and found["invert"]["network_calls"] is None
    assert found["invert"]["reconstruction_psnr"] == 40 and found["brighter"]["reconstruction_psnr"] is None
    assert found["brighter"]["psnr_source"] > found["invert"]["psnr_source"], "less was changed"
    assert found["invert"]["identity"] is None, "the toy judges have nothing to say about other backbones"
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[2].startswith("| invert | - | - |") and len({line.count("|") for line in lines[:4]}) == 1


def test_the_report_has_a_slider_a_method_and_picture(methods, tmp_path):
    for n in range(2):
        picture(tmp_path / "in" / f"{n}.png", n)
    compare(options(tmp_path / "in", output=tmp_path / "out"))
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count('type="range"') == 4 and text.count("data:image/png;base64,") == 8
    assert "http" not in text.replace("http-equiv", ""), "nothing from elsewhere"
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 3 * 96 and sheet.height > 2 * 96, "two rows of source and two results"


def test_inputs_go_to_the_methods_that_use_them(methods, tmp_path):
    editors, asked = methods
    compare(options(picture(tmp_path / "a.png"), output=tmp_path / "out", weights=["invert=some/run:0.5"]))
    assert asked == {"invert": ["some/run:0.5"], "brighter": []}
    assert editors["invert"].edited() == ["a.png"]


def test_mistakes_are_one_line_and_write_nothing(methods, tmp_path):
    image, out = picture(tmp_path / "a.png"), tmp_path / "out"
    with pytest.raises(UsageError, match="needs methods"):
        compare(CompareOptions(image=image, output=out))
    with pytest.raises(UsageError, match="needs --image"):
        compare(CompareOptions(methods=["invert"], output=out))
    with pytest.raises(UsageError, match="twice"):
        compare(options(image, "invert", "invert", output=out))
    with pytest.raises(UsageError, match="METHOD=PATH"):
        compare(options(image, weights=["other=x"], output=out))
    with pytest.raises(UsageError, match="brighter needs --instruction"):
        compare(CompareOptions(methods=["brighter"], image=image, output=out))
    with pytest.raises(UserError, match="no file or folder"):
        compare(options(tmp_path / "none.png", output=out))
    assert not out.exists() or not any(out.iterdir())
