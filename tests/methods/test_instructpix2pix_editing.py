"""Edits by InstructPix2Pix: the same as those of diffusers' own pipeline, from exported and from published weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from editkit.backbones.latent import LatentBackbone
from editkit.engine.rng import batch_noise, level_noise
from editkit.errors import UsageError, UserError
from editkit.methods.fully_supervised.instructpix2pix import InstructPix2Pix
from editkit.training.artefact import Artefact
from editkit.training.unet_tuning import tuned
from tests.backbones import tiny_latent as tiny
from tests.methods.instructpix2pix_parts import TEXTS, method, perturb, requests


def theirs(folder, images, latents, **arguments):
    """Return the images of diffusers' own pipeline, of a folder as it is."""
    pipe = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        made = pipe(TEXTS, images / 2 + 0.5, latents=latents, output_type="pt", **arguments).images
    return torch.as_tensor(made) * 2 - 1


def start(purpose="start"):
    return batch_noise((4, tiny.LATENT, tiny.LATENT), ["0.png", "1.png"], seed=0, purpose=purpose)


def edited(editor, some):
    return editor.edit(some, editor.prepare(some)).images


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_exported_folder_opens_in_diffusers_and_gives_the_same_image(kind, tmp_path):
    parts = tiny.parts() | {"scheduler": tiny.scheduler(prediction_type=kind)}
    names = ("unet", "vae")
    made = method(LatentBackbone(*(parts[n] for n in names), parts["scheduler"].config, parts["text_encoder"], tiny.tokenizer()))
    perturb(made)
    files = made.export(tmp_path)
    ours = edited(made.editor([Artefact.load(files[0])]), requests())
    scales = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
    other = theirs(tmp_path / "diffusers", tiny.images(2), start(), num_inference_steps=10, **scales)
    assert ours.std() > 0.05 and (ours - other).abs().max() <= 1e-4
    swapped = theirs(tmp_path / "diffusers", tiny.images(2), start(), num_inference_steps=10, guidance_scale=1.5)
    assert (ours - swapped).abs().max() > 1e-2


def test_euler_ancestral_is_that_of_diffusers(tmp_path, monkeypatch):
    """Their state is x / a and their noise comes from a generator: the same noise is put in its place."""
    made = method(solver="euler-ancestral")
    perturb(made)
    made.export(tmp_path)
    editor = made.editor([Artefact.load(tmp_path / "instructpix2pix.safetensors")])
    levels = editor.solver.levels(made.backbone.schedule, 10)
    noises = level_noise((4, 16, 16), ["0.png", "1.png"], seed=0)
    steps = iter(range(10, 0, -1))
    target = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(target, lambda *_, **__: noises(next(steps)))
    latents = start() / levels.noise(10)  # theirs begins at s rather than 1: noise x sigma = x / a
    other = theirs(tmp_path / "diffusers", tiny.images(2), latents, num_inference_steps=10)
    ours = edited(editor, requests())
    assert ours.std() > 0.05 and (ours - other).abs().max() <= 1e-4


def test_an_edit_starts_from_noise_and_not_from_the_source(monkeypatch):
    """An easy wrong version noises the source: a network deaf to the image then still keeps some of it."""
    made = method()
    other = [request.with_(image=-request.image) for request in requests()]
    assert torch.allclose(edited(made.editor([]), requests()), edited(made.editor([]), other), atol=1e-5)
    perturb(made)
    assert not torch.allclose(edited(made.editor([]), requests()), edited(made.editor([]), other), atol=1e-2)


def test_scales_of_one_and_zero_leave_one_lane():
    made = method()
    perturb(made)
    for text, image, lanes in ((1.0, 1.0, 1), (0.0, 0.0, 1), (3.0, 3.0, 2), (7.5, 1.5, 3)):
        editor = made.editor([])
        editor.text_scale, editor.image_scale = text, image
        assert editor.edit(requests(), editor.prepare(requests())).scores["network_calls"] == [10.0 * lanes] * 2


def test_strength_scales_the_text_and_the_three_lanes_are_one_call(monkeypatch):
    made = method(text_scale=4.0)
    perturb(made)
    editor, batches = made.editor([]), []
    forward = LatentBackbone.forward
    monkeypatch.setattr(LatentBackbone, "forward", lambda self, x, *a, **k: batches.append(len(x)) or forward(self, x, *a, **k))
    half = edited(editor, requests(strength=0.5))
    assert batches == [6] * 10
    editor.text_scale = 2.0
    assert torch.equal(half, edited(editor, requests()))
    mixed = [requests(strength=0.5)[0], requests(strength=1.5)[1]]
    editor.text_scale = 4.0
    assert torch.allclose(edited(editor, mixed)[0], half[0], atol=1e-4)


def test_published_weights_edit_without_a_trained_part():
    ready = InstructPix2Pix(backbone=tiny.backbone(8), solver="ddim", steps=4)
    assert not ready.needs_trained and method().needs_trained
    assert edited(ready.editor([]), requests()).shape == (2, 3, tiny.SIZE, tiny.SIZE)


def test_weights_that_do_not_fit_are_named(tmp_path):
    made = method()
    (own,) = made.artefacts()
    with pytest.raises(UserError, match="not a trained UNet"):
        tuned(made.backbone, Artefact("x", own.tensors, card={"method": "asyrp"}))
    missing = {name: tensor for name, tensor in own.tensors.items() if name != "conv_in.bias"}
    with pytest.raises(UserError, match=r"another backbone: their conv_in\.bias is missing"):
        tuned(made.backbone, Artefact("x", missing, card={"kind": "unet"}))
    with pytest.raises(UsageError, match="one trained UNet"):
        made.editor([own, own])


def test_a_files_strength_is_its_share_of_the_weights():
    made = method()
    (own,) = made.artefacts()
    shifted = Artefact("x", {name: tensor + 1 for name, tensor in own.tensors.items()}, 0.5, {"kind": "unet"})
    bias = tuned(made.backbone, shifted).unet.conv_in.bias
    assert torch.allclose(bias, made.backbone.unet.conv_in.bias + 0.5, atol=1e-3)
