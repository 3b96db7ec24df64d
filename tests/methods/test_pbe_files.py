"""Paint by Example's files: the published names, one call that loads, exports that diffusers opens."""

from __future__ import annotations

import pytest
import torch
from diffusers import PNDMScheduler
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder as Theirs

from editkit.backbones import exemplar
from editkit.backbones.exemplar_folder import load_exemplar, save_exemplar
from editkit.errors import UsageError, UserError
from editkit.training.artefact import Artefact
from tests.backbones import tiny_latent as tiny
from tests.methods import pbe_parts as parts


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return parts.write_tower(tmp_path_factory.mktemp("tower"))


def test_an_encoder_has_the_published_names(tower, tmp_path):
    encoder = parts.trained(tower).backbone.image_encoder
    reference = Theirs(encoder.config, proj_size=tiny.WIDTH)
    names = {exemplar.published_name(name) for name in reference.state_dict()}
    state = encoder.published_state()
    assert set(state) == names
    assert "model.vision_model.embeddings.class_embedding" in state and "model.vision_model.pre_layrnorm.weight" in state
    assert {"mapper.blocks.0.attn1.to_out.0.bias", "mapper.blocks.0.ff.net.0.proj.weight", "uncond_vector"} <= names
    assert not any("norm2" in name and "mapper" in name for name in names)
    other = exemplar.PaintByExampleImageEncoder(encoder.config, tiny.WIDTH)
    old = {**state, "model.vision_model.embeddings.position_ids": torch.arange(10)[None]}
    other.load_published(old)
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="1 names are on one side only, such as 'uncond_vector'"):
        other.load_published({name: tensor for name, tensor in state.items() if name != "uncond_vector"})


def test_saved_and_loaded_in_one_call_it_is_the_same(tower, tmp_path):
    made = parts.trained(tower)
    save_exemplar(made.backbone, tmp_path)
    again = load_exemplar(tmp_path)
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in made.backbone.state_dict().items())
    assert again.preprocess == made.backbone.preprocess and again.digest() == made.backbone.digest()
    settings = {"steps": parts.STEPS, "solver": "ddim", "encoder": "not read"}
    other = type(made)(backbone=again, **settings)
    assert not other.needs_trained and made.needs_trained
    assert torch.equal(parts.painted(made, parts.requests()), parts.painted(other, parts.requests()))
    (tmp_path / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not a Paint by Example model: expected image_encoder/model.safetensors"):
        load_exemplar(tmp_path)


def test_an_export_opens_in_diffusers_and_in_editkit(tower, tmp_path):
    made = parts.trained(tower, mask_resize="nearest", solver="plms")
    made.prepare_training()
    made.freeze_rest()
    asked = parts.requests()
    files = made.export(tmp_path)
    artefact = Artefact.load(files[0])
    fresh = parts.method(tower, mask_resize="nearest", solver="plms")
    assert artefact.card["backbone_digest"] == made.starts_from
    mine = parts.painted(fresh, asked, [artefact])
    folder = tmp_path / "diffusers"
    pipe = parts.pipeline(folder, PNDMScheduler.from_pretrained(folder / "scheduler"))
    assert (parts.theirs(pipe, made, asked) - mine).abs().max() <= 2e-2, "half precision on both sides"
    assert (parts.painted(fresh, asked) - mine).abs().max() > 0.1, "the trained file changes the picture"
    artefact.tensors.pop("backbone.image_encoder.uncond_vector")
    with pytest.raises(UserError, match="uncond_vector is missing"):
        fresh.editor([artefact])
    with pytest.raises(UserError, match="are not of pbe"):
        fresh.editor([Artefact("x", artefact.tensors, card={"method": "another"})])
    with pytest.raises(UsageError, match="one trained file, as it was trained"):
        fresh.editor([Artefact("x", artefact.tensors, 0.5, artefact.card)])


def test_the_digest_is_that_of_what_does_not_start_at_random(tower):
    one, other = parts.method(tower).backbone, parts.method(tower).backbone
    with torch.no_grad():
        other.image_encoder.uncond_vector.normal_()
        assert one.digest() == other.digest()
        next(other.image_encoder.model.parameters()).add_(1)
    assert one.digest() != other.digest()
