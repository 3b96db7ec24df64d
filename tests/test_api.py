"""The Python door: what it takes, what it returns, and that it is light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import editkit
from editkit.app.edit import edit_images
from editkit.app.loaded import Loaded
from editkit.app.options import EditOptions
from editkit.data.photo import photo_from_pil
from editkit.errors import UsageError, UserError
from tests.app import tiny
from tests.app.standin import SIZE, Inverter, picture, pixels


@pytest.fixture
def model() -> editkit.Model:
    return editkit.Model(Loaded("invert", Inverter(), SIZE, batch_size=2))


def test_importing_is_light():
    code = (
        "import sys, editkit; print([m for m in ('torch', 'numpy', 'PIL', 'hydra') if m in sys.modules], sorted(editkit.__all__))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[] ['Edited', 'Model', 'load']"
    with pytest.raises(AttributeError, match="nothing"):
        _ = editkit.nothing


def test_a_picture_in_any_form_gives_the_same(model, tmp_path):
    path = picture(tmp_path / "a.png", size=SIZE)
    array = pixels(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    for form in (path, str(path), Image.open(path), array, tensor, photo_from_pil(Image.open(path))):
        result = model.edit(form)
        assert result.images.shape == (1, 3, *SIZE)
        assert np.array_equal(np.asarray(result.pil()), 255 - array), type(form)


def test_a_tensor_of_the_models_size_is_not_rounded(model):
    image = torch.rand(3, *SIZE) * 2 - 1
    assert torch.equal(model.edit(image).images[0], -image)


def test_several_pictures_go_in_batches(model):
    images = torch.rand(5, 3, *SIZE) * 2 - 1
    result = model.edit(images, strength=[0.0, 1.0], samples=1, key=list("abcde"))
    assert result.images.shape == (10, 3, *SIZE) and len(result.photos) == 10
    assert torch.equal(result.images[2], images[1]) and torch.equal(result.images[3], -images[1])
    assert [len(batch) for batch in model.loaded.editor.batches] == [2, 2, 2, 2, 1, 1]
    assert result.scores["reconstruction_psnr"] == [40.0] * 10


def test_a_photograph_comes_back_at_full_resolution(model):
    rgba = np.random.default_rng(0).integers(0, 256, (70, 90, 4), dtype=np.uint8)
    mask = np.zeros((70, 90), bool)
    mask[20:40, 30:50] = True
    result = np.asarray(model.edit(Image.fromarray(rgba), mask=mask).pil())
    assert result.shape == rgba.shape and np.array_equal(result[~mask], rgba[~mask])
    assert np.array_equal(result[..., 3], rgba[..., 3]) and not np.array_equal(result[mask], rgba[mask])


def test_bad_inputs_are_user_errors(model, tmp_path):
    with pytest.raises(UsageError, match="no use for --reference"):
        model.edit(Image.new("RGB", (9, 9)), references=[Image.new("RGB", (9, 9))])
    with pytest.raises(UsageError, match="needs --image"):
        model.edit()
    with pytest.raises(UserError, match=r"3 x 4 pixels but the image is 9 x 9"):
        model.edit(Image.new("RGB", (9, 9)), mask=np.ones((4, 3), bool))
    with pytest.raises(UserError, match=r"\(3, H, W\)"):
        model.edit(torch.zeros(1, 5, 5))
    with pytest.raises(UserError, match="-1, 1"):
        model.edit(torch.full((3, 5, 5), 255.0))
    with pytest.raises(TypeError, match="streght"):
        model.edit(Image.new("RGB", (9, 9)), streght=1)


def test_asyrp_from_load_to_picture_as_the_command_line_does_it(tmp_path):
    """A real method on random weights: load, edit at two strengths, and the same file through `editkit edit`."""
    folder = tiny.backbone(tmp_path / "model")
    part = tiny.trained(tmp_path / "smiling.safetensors", folder)
    source = picture(tmp_path / "face.png", size=(30, 24))
    overrides = [f"backbone.path={folder}"]
    model = editkit.load("asyrp", weights=part, overrides=overrides, device="cpu")
    assert model.size == (16, 16)
    result = model.edit(source, strength=[0.0, 1.0], steps=4)
    assert not torch.allclose(result.images[0], result.images[1], atol=1e-3)
    assert set(result.scores) >= {"network_calls", "reconstruction_psnr"}
    arguments = {"weights": [str(part)], "overrides": overrides, "strength": [1.0], "steps": 4, "device": "cpu"}
    edit_images(EditOptions(method="asyrp", image=source, output=tmp_path / "o.png", **arguments))
    assert np.abs(pixels(tmp_path / "o.png").astype(int) - np.asarray(result.pil(1)).astype(int)).max() <= 1


def test_parts_are_weighted_and_named(tmp_path):
    folder = tiny.backbone(tmp_path / "model")
    smiling = tiny.trained(tmp_path / "smiling.safetensors", folder)
    old = tiny.trained(tmp_path / "old.safetensors", folder, target="an old face", seed=1)
    overrides = [f"backbone.path={folder}"]
    image = torch.rand(3, 16, 16) * 2 - 1

    def edited(*weights: str) -> torch.Tensor:
        return editkit.load("asyrp", weights=weights, overrides=overrides, device="cpu").edit(image, steps=4).images

    assert torch.allclose(edited(f"{smiling}:0"), edited(f"happy={old}:0"), atol=1e-4), "at strength 0 nothing acts"
    assert not torch.allclose(edited(f"{smiling}:0.5"), edited(str(smiling)), atol=1e-3)
    assert not torch.allclose(edited(str(smiling), str(old)), edited(str(smiling)), atol=1e-3)


def test_a_folder_of_parts_is_chosen_from_by_prompt(tmp_path):
    folder = tiny.backbone(tmp_path / "model")
    run = tmp_path / "run"
    tiny.trained(run / "export" / "smiling.safetensors", folder)
    tiny.trained(run / "export" / "old.safetensors", folder, target="an old face", seed=1)
    options = {"weights": Path(run), "overrides": [f"backbone.path={folder}"], "device": "cpu"}
    model = editkit.load("asyrp", prompt="An old face.", **options)
    assert [one.target for one in model.loaded.targets] == ["an old face"]
    with pytest.raises(UsageError, match="an angry face"):
        editkit.load("asyrp", prompt="an angry face", **options)
