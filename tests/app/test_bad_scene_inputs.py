"""What a person may get wrong with the methods of scenes, by the command line: one line that names it, and says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editkit.backbones.exemplar_folder import save_exemplar
from editkit.cli import run
from editkit.data.layout import render
from tests.app.standin import picture
from tests.app.test_bad_inputs import refused
from tests.backbones import tiny_latent as tiny
from tests.methods import pbe_parts
from tests.tiny import shrink, write_images

LONG = "a photograph of a very large red star on a wide sandy beach at night in winter"
MASKS = {"turned": (60, 70), "empty": (70, 60), "full": (70, 60), "part": (70, 60)}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a tiny model of each layout, a photograph, masks, references and data sets."""
    root = tmp_path_factory.mktemp("home")
    for name, channels in (("latent", 4), ("published", 8), ("inpainting", 9)):
        tiny.folder(root / name, channels)
    pbe_parts.write_tower(root / "tower")
    save_exemplar(pbe_parts.trained(root / "tower").backbone, root / "exemplar")
    picture(root / "photo.png", size=(70, 60))
    picture(root / "chair.png", 1, (40, 90))
    picture(root / "speck.png", 2, (3, 3))
    for name, (width, height) in MASKS.items():
        mask = np.full((height, width), name == "full")
        mask[20:34, 30:51] |= name in ("part", "turned")
        Image.fromarray(mask).save(root / f"{name}.png")
    write_images(root / "plain")
    for layout in ("coco", "instructpix2pix"):
        render("scenes", 6, root / layout, size=32, layout=layout)
    return root


# What each method is given where nothing is wrong; * is the folder.
PBE = ["pbe", "--backbone", "pbe", "backbone.path=*/exemplar", "--reference", "*/chair.png", "--mask", "*/part.png"]
INPAINT = ["inpaint", "--backbone", "toy_latent", "backbone.path=*/inpainting", "--prompt", "a cup", "--mask", "*/part.png"]
PASTE = ["copy-paste", "--reference", "*/chair.png", "--mask", "*/part.png"]
INSTRUCT = ["instructpix2pix", "backbone.path=*/published", "--instruction", "make it night"]
TRANSLATE = ["cyclenet", "backbone.path=*/latent", "--source-prompt", "by day", "--prompt", "at night"]
SDEDIT = ["sdedit", "--backbone", "toy_latent", "backbone.path=*/latent", "--prompt", "a cup"]


def changed(usual: list[str], backbone: str | None = None, **changes: str | None) -> list[str]:
    """Return the arguments with another backbone.path, and with other values of some options or without them."""
    arguments = [f"backbone.path={backbone}" if backbone and text.startswith("backbone.path=") else text for text in usual]
    for name, value in changes.items():
        at = arguments.index(f"--{name}")
        arguments[at : at + 2] = [] if value is None else [arguments[at], value]
    return arguments


def edit(home: Path, arguments: list[str], output: Path) -> list[str]:
    whole = ["edit", "--method", *arguments, "--image", "*/photo.png", "--steps", "2", "-o", str(output)]
    return [text.replace("*", str(home)) for text in whole]


EDITS = {
    **{f"{usual[0]}: mask of another size": (changed(usual, mask="*/turned.png"), 1, "60 x 70 pixels but .* 70 x 60")
       for usual in (PBE, INPAINT, PASTE)},
    **{f"{usual[0]}: empty mask": (changed(usual, mask="*/empty.png"), 1, r"empty\.png selects nothing.*White marks")
       for usual in (PBE, INPAINT, PASTE)},
    **{f"{usual[0]}: full mask": (changed(usual, mask="*/full.png"), 1, "covers everything that the model sees: mark the part")
       for usual in (PBE, INPAINT, PASTE)},
    **{f"{usual[0]}: no mask": (changed(usual, mask=None), 2, f"{usual[0]} needs --mask") for usual in (PBE, INPAINT, PASTE)},
    "tiny reference": (changed(PBE, reference="*/speck.png"), 1, "3x3 pixels .* too small: give at least 8 a side"),
    "two references": ([*PBE, "--reference", "*/chair.png"], 2, "from one --reference, got 2"),
    "no reference": (changed(PBE, reference=None), 2, "pbe needs --reference"),
    "inpaint on 4 channels": (changed(INPAINT, backbone="*/latent"), 2, "5 channels .*; this backbone has 0: choose backbone="),
    "inpaint on 8 channels": (changed(INPAINT, backbone="*/published"), 2, "this backbone has 4: choose"),
    "inpaint on pixels": ([*INPAINT[:1], "--backbone", "toy_faces", *INPAINT[4:]], 2, "this backbone is one of pixels: choose"),
    "inpaint by example": ([*INPAINT[:1], *PBE[1:4], *INPAINT[4:]], 2, "this backbone reads no text: choose"),
    "instruction on 9 channels": (changed(INSTRUCT, backbone="*/inpainting"), 2, "4 or 8 input channels, .* has 9: choose"),
    "instruction, untrained": (changed(INSTRUCT, backbone="*/latent"), 1, "no trained weights.*editkit train recipe=instruct"),
    "example, untrained": (["pbe", *changed(PBE, backbone="*/inpainting")[3:]], 1, "no trained weights.*train recipe=pbe"),
    "translation on 9 channels": (changed(TRANSLATE, backbone="*/inpainting"), 2, "takes 9 channels: choose backbone=sd21_base"),
    "translation without a text": (changed(TRANSLATE, prompt=None), 2, "cyclenet needs --prompt"),
    "sdedit on 9 channels": (changed(SDEDIT, backbone="*/inpainting"), 2, r"5 extra channels.*is given nothing .*: choose"),
    "parts of two models": ([*SDEDIT, "+backbone.text_encoder=editkit:toy-latent"], 1, "takes tokens of 16 .* different models"),
    "no weights here": (["sdedit", "--backbone", "sd15", "--prompt", "x"], 1, "`editkit weights fetch st.*, or set download"),
    "no network": (["sdedit", "--backbone", "sd15", "backbone.download=true", "--prompt", "x"], 1, "cannot be fetched"),
    "no encoder here": (
        ["pbe", "backbone.path=*/latent", "method.encoder=openai/clip-vit-large-patch14", *PBE[4:]], 1, "`editkit weights fetch",
    ),
    "no such folder": (changed(SDEDIT, backbone="*/nowhere"), 1, "no weights at .*nowhere: give a folder that exists"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_bad_edits(home, tmp_path, capsys, monkeypatch, what):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("EDITKIT_WEIGHTS", str(tmp_path / "none"))
    arguments, code, expected = EDITS[what]
    said = refused(capsys, edit(home, arguments, tmp_path / "o.png"), code)
    assert re.search(expected, said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("usual", [PBE, INPAINT, PASTE, INSTRUCT, SDEDIT], ids=lambda usual: usual[0])
def test_what_they_are_given_otherwise_is_right(home, tmp_path, usual):
    assert run(edit(home, usual, tmp_path / "o.png")) == 0


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("instructpix2pix", ["--backbone", "instructpix2pix", "backbone.path=*/published", "--instruction", "x"]),
        ("pbe", PBE[1:]),
    ],
)
def test_published_weights_edit_without_the_data_that_they_were_trained_on(home, tmp_path, method, arguments):
    assert run(edit(home, [f"paper/{method}", *arguments], tmp_path / "o.png")) == 0


@pytest.mark.parametrize(
    ("usual", "left_out"),
    [(changed(INSTRUCT, instruction=LONG), "red star"), (changed(SDEDIT, prompt=LONG), "red star")],
)
def test_a_text_that_is_too_long_is_cut_with_a_line_that_says_what(home, tmp_path, capsys, usual, left_out):
    assert run(edit(home, usual, tmp_path / "o.png")) == 0
    said = capsys.readouterr().err
    assert f"editkit: the text is longer than 10 tokens; left out: '{left_out}" in said
    assert "UserWarning" not in said and ".py" not in said, "no line of Python"


TRAININGS = {
    "COCO as pairs": ("instructpix2pix", "instructpix2pix", "coco", 1, "not laid out like InstructPix2Pix.*looks like COCO"),
    "COCO for instructions": ("instructpix2pix", "coco", "coco", 2, "have no target and no instruction: choose data=instructpix"),
    "a plain folder for instructions": ("instructpix2pix", "folder", "plain", 2, "no target and no instruction: choose data="),
    "COCO for examples": ("pbe", "coco", "coco", 2, "no mask and no references: choose .*data=coco_exemplars"),
    "pairs for examples": ("pbe", "instructpix2pix", "instructpix2pix", 2, "no mask and no references: choose"),
    "COCO as boxes": ("pbe", "openimages_exemplars", "coco", 1, "not laid out like OpenImages.*looks like COCO: use data=coco"),
    "a plain folder for a translation": ("cyclenet", "folder", "plain", 2, "which these data lack: choose data=scene_domains"),
    "no texts for a translation": ("cyclenet", "prompted_folder", "plain", 1, 'lack a text.*"target": "winter"'),
    "no folder": ("instructpix2pix", "magicbrush", "nowhere", 1, "there is no folder .*nowhere: set data.root to"),
}


def train(home: Path, recipe: str, data: str, folder: str, run_dir: Path) -> list[str]:
    own = [text for text in shrink(recipe, home) if not text.startswith(("data.", "backbone.path=", "trainer.steps="))]
    inner = "data.inner" if data.endswith("_exemplars") else "data"
    given = [f"data={data}", f"{inner}.root={home / folder}", f"{inner}.size=32", f"run_dir={run_dir}", "trainer.steps=1"]
    encoder = [f"method.encoder={home / 'tower'}"] if recipe == "pbe" else []
    return ["train", *own, f"backbone.path={home / 'latent'}", *given, *encoder]


@pytest.mark.parametrize("what", TRAININGS)
def test_bad_training_data(home, tmp_path, capsys, what):
    recipe, data, folder, code, expected = TRAININGS[what]
    assert run(train(home, recipe, data, folder, tmp_path / "run")) == code
    said = capsys.readouterr().err
    assert re.search(expected, said) and "Traceback" not in said, said
    assert len([line for line in said.splitlines() if line.startswith("editkit: ")]) == 1


def test_the_data_that_a_message_names_are_right(home, tmp_path):
    arguments = train(home, "pbe", "coco_exemplars", "coco", tmp_path / "run")
    assert run([*arguments, "data.reference_size=24"]) == 0


@pytest.mark.parametrize(
    ("folder", "method", "code", "expected"),
    [
        ("coco", "pbe", 0, r"laid out like COCO: data=coco_exemplars data\.inner\.root="),
        ("coco", "instructpix2pix", 1, "missing +instructions.*COCO has none; expected one of data=magicbrush"),
        ("coco", "cyclenet", 1, "missing +target_texts.*COCO has none"),
        ("instructpix2pix", "pbe", 1, "missing +references.*InstructPix2Pix has none; expected one of data=coco"),
        ("instructpix2pix", "cyclenet", 0, "ok +target_texts: there for all"),
        ("plain", "pbe", 1, r"missing +masks.*put 0\.png into masks/"),
        ("plain", "cyclenet", 1, r'missing +target_texts.*add {"file_name": "0\.png", "target": "\.\.\."}'),
    ],
)
def test_a_check_says_what_training_would(home, capsys, folder, method, code, expected):
    assert run(["data", "check", str(home / folder), "--for", method]) == code
    assert re.search(expected, capsys.readouterr().out)
