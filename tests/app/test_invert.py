"""`editkit invert`: what it prints, what it writes, and that both are true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from editkit.app.invert import Way, invert_images
from editkit.app.inverters import tabulate_inverters
from editkit.app.options import InvertOptions
from editkit.backbones.pixel import PixelBackbone, load_pixel
from editkit.data.files import provenance
from editkit.engine.invert import GUIDED, INVERTERS, replay
from editkit.engine.sample import sample
from editkit.engine.trajectory import Trajectory
from editkit.errors import UsageError, UserError
from editkit.types import Condition, EditRequest
from tests.app import tiny
from tests.app.standin import picture, pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.backbone(tmp_path_factory.mktemp("model"))


def options(model: Path, image: Path, **more) -> InvertOptions:
    return InvertOptions(image=image, overrides=[f"backbone.path={model}"], **more)


CALLS = {
    "ddim": (5, 6),
    "edit-friendly": (5, 6),
    "sdedit": (0, 3),
    "renoise": (6 + 4 * 10, 6),
    "edict": (10, 12),
    "o-belm": (5, 5),
    "cycle-diffusion": (5, 6),
    "direct": (5, 6),
}


@pytest.mark.parametrize("inverter", CALLS)
def test_calls_and_the_way_back(model, tmp_path, capsys, inverter):
    source, out = picture(tmp_path / "a.png", size=(16, 16)), tmp_path / "a.inv.safetensors"
    assert invert_images(options(model, source, inverter=inverter, steps=6, output=out)) == 0
    said = capsys.readouterr().out
    up, down = CALLS[inverter]
    assert f"{up} network calls up and {down} down" in said
    figure = float(re.search(r"reconstruction ([\d.]+) dB", said).group(1))
    trajectory = Trajectory.load(out)
    assert trajectory.inverter == inverter
    back = sample(load_pixel(model), **replay(trajectory)).clamp(-1, 1)
    truth = torch.from_numpy(pixels(source)).permute(2, 0, 1) / 127.5 - 1
    assert -10 * ((back[0] - truth) / 2).square().mean().log10() == pytest.approx(figure, abs=0.02)


@pytest.mark.parametrize("inverter", ["null-text", "negative-prompt"])
def test_inverters_of_guided_sampling_need_a_text_model(model, tmp_path, inverter):
    source = picture(tmp_path / "a.png", size=(16, 16))
    with pytest.raises(UsageError, match=f"{inverter} inversion needs a backbone that reads text.*: use ddim") as error:
        invert_images(options(model, source, inverter=inverter, steps=3, output=tmp_path / "a.png.png"))
    assert "\n" not in str(error.value) and not (tmp_path / "a.png.png").exists()


class Reader(PixelBackbone):
    """A pixel model that reads the length of a prompt."""

    def condition(self, request):
        return Condition(tokens=torch.full((1, 1, 1), len(request.prompt or "") / 10.0))

    def forward(self, x, t, cond=None):
        pred = super().forward(x, t)
        away = cond.tokens.mean((1, 2)).reshape(-1, 1, 1, 1)
        return self.schedule.convert(x, t, pred.eps + away, "eps")


@pytest.mark.parametrize("inverter", ["null-text", "negative-prompt"])
def test_inverters_of_guided_sampling_on_a_text_model(model, inverter):
    plain = load_pixel(model)
    backbone = Reader(plain.unet, plain.schedule, plain.parameterization)
    way = Way(backbone, INVERTERS[inverter](), backbone.schedule.levels(3), EditRequest("", prompt="a face"))
    (found,) = way.invert([torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1], ["a"])
    assert found.down == 6 and found.trajectory.settings["guidance"]["scale"] == 7.5
    assert found.trajectory.conds and found.up == {"null-text": 2 + 2 * (1 + 10 + 1), "negative-prompt": 2}[inverter]


def test_a_png_keeps_the_reconstruction_and_a_folder_both(model, tmp_path):
    source = picture(tmp_path / "a.png", size=(40, 30))
    invert_images(options(model, source, inverter="edit-friendly", steps=4, output=tmp_path / "back.png"))
    said = provenance(tmp_path / "back.png")
    assert said["inverter"] == "edit-friendly" and said["scores"]["network_calls"] == 7
    assert pixels(tmp_path / "back.png").shape == (16, 16, 3) and said["scores"]["reconstruction_psnr"] > 35
    invert_images(options(model, source, steps=3, output=tmp_path / "both"))
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["a.inv.png", "a.inv.safetensors"]


def test_the_default_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invert_images(options(model, picture(tmp_path / "in" / "a.jpg"), steps=3))
    assert (tmp_path / "a.inv.safetensors").is_file()
    invert_images(options(model, tmp_path / "in" / "a.jpg", steps=4))
    assert len(Trajectory.load("a.inv.safetensors").levels) == 5, "an own result is replaced"
    (tmp_path / "a.inv.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="not written by editkit"):
        invert_images(options(model, tmp_path / "in" / "a.jpg", steps=3))


def test_a_folder_with_a_bad_picture(model, tmp_path, capsys):
    for n in range(3):
        picture(tmp_path / "in" / "sub" / f"{n}.png", n, (20, 16))
    (tmp_path / "in" / "bad.png").write_text("a text")
    assert invert_images(options(model, tmp_path / "in", steps=3, output=tmp_path / "out")) == 1
    assert sorted(path.name for path in (tmp_path / "out" / "sub").glob("*.safetensors")) == [
        f"{n}.inv.safetensors" for n in range(3)
    ]
    assert "failed: bad.png" in capsys.readouterr().err


def test_a_second_run_inverts_only_what_is_missing_or_different(model, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    for n in range(3):
        picture(source / f"{n}.png", n, (16, 16))
    for expected, steps in ((3, 3), (0, 3), (3, 4)):
        assert invert_images(options(model, source, output=out, steps=steps)) == 0
        assert capsys.readouterr().out.count("reconstruction") == expected
    (out / "1.inv.png").unlink()
    picture(source / "2.png", 22, (16, 16))
    assert invert_images(options(model, source, output=out, steps=4)) == 0
    assert capsys.readouterr().out.count("reconstruction") == 2


def test_a_picture_alone_and_in_a_batch_has_the_same_trajectory(model):
    """Noise belongs to the picture's key, not to its place."""
    backbone = load_pixel(model)
    way = Way(backbone, INVERTERS["edit-friendly"](), backbone.schedule.levels(5), EditRequest("", seed=3))
    images = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in range(3)]
    together = way.invert(images, ["a", "b", "c"])
    alone = way.invert(images[1:2], ["b"])[0]
    assert np.allclose(together[1].trajectory.x, alone.trajectory.x, atol=1e-4)
    assert not np.allclose(way.invert(images[1:2], ["x"])[0].trajectory.x, alone.trajectory.x, atol=1e-2)


# All of them in one table.


def test_a_table_of_every_inverter(model, tmp_path, capsys):
    source = picture(tmp_path / "in" / "a.png", size=(16, 16)).parent
    picture(source / "b.png", 3, (16, 16))
    readme = tmp_path / "README.md"
    readme.write_text("# mine\n<!-- inverters -->\nold\n<!-- /inverters -->\nafter\n")
    assert tabulate_inverters(options(model, source, inverter="all", steps=4, update=readme)) == 0
    lines = readme.read_text().splitlines()
    table = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line}
    assert set(INVERTERS) - GUIDED <= set(table) and not GUIDED & set(table), "those of text models are left out"
    assert "old" not in lines and lines[-1] == "after"
    assert table["ddim"][3:5] == ["3", "4"] and table["sdedit"][3] == "0"
    assert float(table["edit-friendly"][1]) > float(table["sdedit"][1]) + 20, "one is exact, the other draws anew"
    said = capsys.readouterr().out
    assert all(name in said for name in table if not name.startswith("-"))


def test_a_table_keeps_nothing_and_one_inverter_has_no_table(model, tmp_path):
    source = picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="leave out -o"):
        tabulate_inverters(options(model, source, inverter="all", output=tmp_path / "x.png"))
    with pytest.raises(UsageError, match="--inverter all"):
        invert_images(options(model, source, update=tmp_path / "README.md"))


def test_a_file_without_marks_is_refused_before_a_model_is_loaded(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# mine\n")
    with pytest.raises(UserError, match="has no lines <!-- inverters --> and <!-- /inverters -->"):
        tabulate_inverters(options(tmp_path / "no-model", picture(tmp_path / "a.png"), inverter="all", update=readme))
