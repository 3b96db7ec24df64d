"""InstructPix2Pix through the command line: a run, its weights, published weights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editkit import cli
from editkit.backbones.latent_folder import load_latent
from editkit.data.files import provenance
from editkit.data.mirrored import Mirrored, MirroredDataset
from editkit.data.scene_pairs import SceneEditsData
from tests.backbones import tiny_latent
from tests.tiny import shrink, write_vae

EDIT = ["edit", "--method", "instructpix2pix", "--steps", "2", "--instruction", "make it night"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Return a folder with a text-to-image model, one that edits, and a picture."""
    folder = tmp_path_factory.mktemp("ip2p")
    for name, channels in (("latent", 4), ("published", 8)):
        tiny_latent.folder(folder / name, channels)
        write_vae(folder / name / "vae")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)).save(folder / "scene.png")
    return folder


@pytest.fixture(scope="module")
def run(home) -> Path:
    arguments = [text for text in shrink("instructpix2pix", home) if not text.startswith("trainer.steps")]
    assert cli.run(["train", *arguments, "trainer.steps=2", f"run_dir={home / 'run'}"]) == 0
    return home / "run"


def edit(home, output, *more) -> int:
    return cli.run([*EDIT, "--image", str(home / "scene.png"), "-o", str(output), *more])


def test_a_run_edits_by_its_weights(home, run, capsys):
    backbone = f"backbone.path={home / 'latent'}"
    assert sorted(path.name for path in (run / "export").iterdir()) == ["diffusers", "instructpix2pix.safetensors"]
    assert edit(home, home / "a.png", backbone, "--weights", str(run)) == 0
    assert edit(home, home / "b.png", backbone, "--weights", str(run), "--seed", "1") == 0
    one, other = (np.asarray(Image.open(home / name)) for name in ("a.png", "b.png"))
    assert one.shape == (80, 64, 3) and (one != other).any()
    assert provenance(home / "a.png")["texts"] == {"instruction": "make it night"}
    trained, plain = load_latent(run / "export" / "diffusers"), load_latent(home / "latent")
    assert trained.extra_channels == 4 and plain.extra_channels == 0
    assert torch.equal(trained.vae.encoder.conv_in.weight, plain.vae.encoder.conv_in.weight)


def test_published_weights_edit_at_once_and_others_need_training(home, capsys):
    assert edit(home, home / "c.png", f"backbone.path={home / 'published'}") == 0
    assert edit(home, home / "d.png", f"backbone.path={home / 'latent'}") == 1
    assert "has no trained weights for the backbone" in capsys.readouterr().err


def test_weights_of_another_backbone_are_refused(home, run, capsys):
    assert edit(home, home / "e.png", f"backbone.path={home / 'published'}", "--weights", str(run)) == 1
    assert "was trained on another backbone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "IMAGE"], "needs --instruction"),
        (["--instruction", "make it night"], "needs --image"),
        (["--image", "IMAGE", "--instruction", "x", "--prompt", "y", "backbone.path=PUBLISHED"], "no use for --prompt"),
        (["--image", "IMAGE", "--instruction", "x", "method.solver=euller", "backbone.path=PUBLISHED"], "Did you mean 'euler'"),
        (["--image", "IMAGE", "--instruction", "x", "--backbone", "toy_faces"], "a model of pixels"),
    ],
)
def test_what_is_wrong_is_one_line(home, arguments, said, capsys):
    places = {"IMAGE": str(home / "scene.png"), "PUBLISHED": str(home / "published")}
    for name, place in places.items():
        arguments = [text.replace(name, place) for text in arguments]
    assert cli.run(["edit", "--method", "instructpix2pix", *arguments, "-o", str(home / "x.png")]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


# ------------------------------------------------------------------------------------------------------ mirrored pairs


class Pairs(list):
    """Two pairs whose source is their target, one with a side in its instruction."""

    def __init__(self):
        pictures = torch.rand(2, 3, 4, 4)
        texts = ["make it night", "put a cup to the Left"]
        super().__init__(
            {"image": p, "target": p, "mask": p[:1], "boxes": torch.ones(2, 4), "instruction": text, "key": str(n), "index": n}
            for n, (p, text) in enumerate(zip(pictures, texts, strict=True))
        )


def test_twins_are_mirrored_together_unless_the_instruction_names_a_side():
    """An easy wrong version flips source and target by draws of their own."""
    pairs = Pairs()
    twins = MirroredDataset(pairs)
    assert len(twins) == 4 and len({twins[k]["key"] for k in range(4)}) == 4
    for k in range(2):
        assert all(torch.equal(twins[k][name], pairs[k][name]) for name in ("image", "target", "mask"))
    assert torch.equal(twins[2]["image"], pairs[0]["image"].flip(2)) and torch.equal(twins[2]["image"], twins[2]["target"])
    assert torch.equal(twins[2]["mask"], pairs[0]["mask"].flip(2)) and torch.equal(twins[2]["boxes"], pairs[0]["boxes"])
    assert torch.equal(twins[3]["image"], pairs[1]["image"])
    assert torch.equal(MirroredDataset(pairs, safe=False)[3]["image"], pairs[1]["image"].flip(2))
    assert [twins[k]["index"] for k in range(4)] == [0, 1, 2, 3] and twins[-1]["key"] == "1/mirrored"


def test_only_training_has_twins():
    data = Mirrored(SceneEditsData(16, 3, 2, 2))
    assert [len(data.dataset(split)) for split in ("train", "validation", "test")] == [6, 2, 2]
