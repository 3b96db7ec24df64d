"""Paint by Example by the command line: trained weights of a run, and a folder in the published layout."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from editkit.app.edit import edit_images
from editkit.app.options import EditOptions
from editkit.backbones.latent_folder import load_latent
from editkit.data.files import provenance
from editkit.errors import UserError
from tests.app.standin import picture, pixels
from tests.backbones import tiny_latent as tiny
from tests.methods import pbe_parts as parts


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Return a folder with a tower, a text-to-image model, a run that is trained, and a photograph with its mask."""
    folder = tmp_path_factory.mktemp("pbe")
    parts.write_tower(folder / "tower")
    tiny.folder(folder / "latent")
    made = parts.trained(folder / "tower", backbone=load_latent(folder / "latent"))
    made.starts_from = parts.method(folder / "tower", backbone=load_latent(folder / "latent")).backbone.digest()
    made.freeze_rest()
    made.export(folder / "run" / "export")
    picture(folder / "photo.png", size=(70, 60))
    picture(folder / "chair.png", 1, (40, 90))
    mask = np.zeros((60, 70), bool)
    mask[20:34, 30:51] = True
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def options(home, out, **more) -> EditOptions:
    given = {"image": home / "photo.png", "mask": home / "mask.png", "reference": [home / "chair.png"], "output": out}
    return EditOptions(method="pbe", device="cpu", steps=3, **(given | more))


def test_a_run_paints_inside_the_mask_and_leaves_every_other_bit(home, tmp_path):
    own = [f"backbone.path={home / 'latent'}", f"method.encoder={home / 'tower'}"]
    weights = [str(home / "run")]
    assert edit_images(options(home, tmp_path / "o.png", weights=weights, overrides=own)) == 0
    before, after, mask = pixels(home / "photo.png"), pixels(tmp_path / "o.png"), pixels(home / "mask.png") > 0
    assert np.array_equal(before[~mask], after[~mask]) and not np.array_equal(before[mask], after[mask])
    said = provenance(tmp_path / "o.png")
    assert (said["method"], said["scores"]["network_calls"]) == ("pbe", 6)
    with pytest.raises(UserError, match="pbe has no trained weights for the backbone"):
        edit_images(options(home, tmp_path / "p.png", overrides=own))


def test_a_published_folder_paints_as_it_is(home, tmp_path):
    own = [f"backbone.path={home / 'run' / 'export' / 'diffusers'}", "method.encoder=nowhere"]
    assert edit_images(options(home, tmp_path / "o.png", backbone="pbe", overrides=own)) == 0
    alone = pixels(tmp_path / "o.png")
    edit_images(options(home, tmp_path / "p.png", backbone="pbe", overrides=own, reference=[home / "photo.png"]))
    assert not np.array_equal(alone, pixels(tmp_path / "p.png")), "another reference, another picture"


def test_a_folder_without_an_image_encoder_is_named(home, tmp_path):
    with pytest.raises(UserError, match="not a Paint by Example model: expected image_encoder/model.safetensors"):
        edit_images(options(home, tmp_path / "o.png", backbone="pbe", overrides=[f"backbone.path={home / 'latent'}"]))
