"""Inpainting by text, held against diffusers' pipeline, and copy-paste."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionInpaintPipeline

from editkit.engine.rng import batch_noise
from editkit.errors import UsageError, UserError
from editkit.methods.baselines.copy_paste import CopyPaste
from editkit.methods.baselines.inpaint import Inpaint
from editkit.types import EditRequest
from tests.backbones import tiny_latent as tiny

STEPS = 10


def request(key: str = "a", **changes) -> EditRequest:
    given = {"image": tiny.images()[0], "mask": tiny.masks()[0], "prompt": "a red cup"} | changes
    return EditRequest(key, **given)


def edited(editor, requests):
    editor.check(requests)
    return editor.edit(requests, editor.prepare(requests))


def test_inpainting_paints_as_diffusers_does():
    backbone = tiny.backbone(9)
    asked = [request("a"), request("bb", prompt="a dog")]
    mine = edited(Inpaint(backbone=backbone, steps=STEPS, negative="a house").editor([]), asked)
    pipeline = StableDiffusionInpaintPipeline(
        **tiny.parts(9), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = batch_noise((4, tiny.LATENT, tiny.LATENT), ["a", "bb"], seed=0, purpose="start")
    images, masks = (torch.stack([getattr(one, name) for one in asked]) for name in ("image", "mask"))
    with torch.no_grad():
        theirs = pipeline(
            prompt=[one.prompt for one in asked],
            negative_prompt=["a house"] * 2,
            image=images / 2 + 0.5,
            mask_image=masks,
            latents=noise,
            height=tiny.SIZE,
            width=tiny.SIZE,
            strength=1.0,
            num_inference_steps=STEPS,
            guidance_scale=7.5,
            output_type="pt",
        ).images
    assert mine.images.std() > 0.05 and (mine.images - (torch.as_tensor(theirs) * 2 - 1)).abs().max() <= 1e-4
    assert mine.scores["network_calls"] == [2 * STEPS] * 2


def test_inpainting_needs_an_inpainting_model_a_prompt_and_a_mask():
    with pytest.raises(UsageError, match="inpaint needs a latent inpainting model that reads text"):
        Inpaint(backbone=tiny.backbone())
    editor = Inpaint(backbone=tiny.backbone(9)).editor([])
    with pytest.raises(UsageError, match="inpaint needs --prompt"):
        editor.check([request(prompt=None)])
    with pytest.raises(UserError, match="a: the mask selects nothing"):
        editor.check([request(mask=torch.zeros(1, tiny.SIZE, tiny.SIZE))])


def test_copy_paste_shows_the_reference_in_the_mask_and_nothing_else_changes():
    ramp = torch.linspace(-1, 1, 60).expand(3, 20, 60).contiguous()
    asked = request(references=(ramp,), prompt=None)
    (image,) = edited(CopyPaste(backbone=tiny.backbone()).editor([]), [asked]).images
    inside = asked.mask.expand_as(image) == 1
    assert torch.equal(image[~inside], asked.image[~inside])
    part = image[:, 9:22, 7:24]
    assert torch.allclose(part, F.interpolate(ramp[None], size=(13, 17), mode="bicubic", antialias=True)[0].clamp(-1, 1))
    assert (part.diff(dim=2) > 0).all() and part[0, 0, 0] < -0.9 and part[0, 0, -1] > 0.9, "the whole reference, squeezed"


def test_copy_paste_follows_a_mask_that_is_no_rectangle():
    mask = torch.zeros(1, tiny.SIZE, tiny.SIZE)
    mask[:, 4:8, 4:20] = mask[:, 8:20, 4:8] = 1
    white = torch.ones(3, 10, 10)
    (image,) = edited(CopyPaste(backbone=tiny.backbone()).editor([]), [request(mask=mask, references=(white,))]).images
    assert torch.equal(image > 0.999, (mask == 1).expand_as(image))  # resizing white rounds it
