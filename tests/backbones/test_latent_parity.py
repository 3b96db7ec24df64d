"""Our images against those of diffusers' own pipelines: the same random weights, noise and levels, in single precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import (
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder, PaintByExamplePipeline
from transformers import CLIPImageProcessorPil, CLIPVisionConfig

from editkit.backbones.controlnet import Controlled, hint, without_control
from editkit.backbones.inpainting import image_channels, inpainting_channels
from editkit.backbones.latent import LatentBackbone
from editkit.engine.guidance import ClassifierFree
from editkit.engine.sample import sample
from editkit.types import Condition, Prediction
from tests.backbones import tiny_latent as tiny

STEPS, SCALE = 10, 7.5
PROMPTS = ["a smiling face", "an old face with glasses"]
QUIET = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
BATCH = pytest.mark.parametrize("batch", [1, 2])


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def ours(made) -> LatentBackbone:
    """Return the backbone of a pipeline's parts."""
    return LatentBackbone(made["unet"], made["vae"], made["scheduler"].config, made["text_encoder"], made["tokenizer"])


def image_of(backbone, denoiser, batch, cond, guidance) -> torch.Tensor:
    levels = backbone.schedule.levels(STEPS, spacing="leading", offset=1, clean="ab0")
    return backbone.decode(sample(denoiser, tiny.noise(batch), levels, cond, guidance=guidance))


def theirs(pipeline, batch, **arguments) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(num_inference_steps=STEPS, latents=tiny.noise(batch), output_type="pt", **arguments).images
    return torch.as_tensor(made) * 2 - 1


def assert_same(image, other):
    assert image.shape == other.shape
    assert image.std() > 0.05, "a flat picture would say nothing"
    assert (image.clamp(-1, 1) - other).abs().max() <= 1e-4


def assert_other(image, other):
    assert (image.clamp(-1, 1) - other).abs().max() > 1e-2, "an easy wrong version passes too"


@BATCH
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_text_to_image(batch, kind):
    made = tiny.parts() | {"scheduler": tiny.scheduler(prediction_type=kind)}
    backbone, prompts = ours(made), PROMPTS[:batch]
    guidance = ClassifierFree(SCALE, Condition(tokens=backbone.tokens(["a bald face"])))
    image = image_of(backbone, backbone, batch, Condition(tokens=backbone.tokens(prompts)), guidance)
    pipeline = StableDiffusionPipeline(**made, **QUIET)
    assert_same(image, theirs(pipeline, batch, prompt=prompts, negative_prompt=["a bald face"] * batch, guidance_scale=SCALE))


@BATCH
def test_inpainting(batch):
    made = tiny.parts(9)
    backbone, prompts, pictures, masks = ours(made), PROMPTS[:batch], tiny.images(batch), tiny.masks(batch)
    concat = inpainting_channels(backbone, pictures, masks)
    cond = Condition(tokens=backbone.tokens(prompts), concat=concat)
    guidance = ClassifierFree(SCALE, Condition(tokens=backbone.tokens([""]), concat=concat))
    image = image_of(backbone, backbone, batch, cond, guidance)
    pipeline = StableDiffusionInpaintPipeline(**made, **QUIET)
    size = {"height": tiny.SIZE, "width": tiny.SIZE}
    other = theirs(
        pipeline, batch, prompt=prompts, image=pictures / 2 + 0.5, mask_image=masks, guidance_scale=SCALE, strength=1.0, **size
    )
    assert_same(image, other)
    swapped = replace(cond, concat=torch.cat([concat[:, 1:], concat[:, :1]], dim=1))
    wrong = ClassifierFree(SCALE, replace(guidance.uncond, concat=swapped.concat))
    assert_other(image_of(backbone, backbone, batch, swapped, wrong), other)


class ThreeBranches:
    """u + s_T (c_TI - c_I) + s_I (c_I - u) of InstructPix2Pix (arXiv 2211.09800, eq. 3), for this test."""

    def __init__(self, text, image, empty):
        self.text, self.image, self.empty = text, image, empty

    def branches(self, cond, t):
        nothing = torch.zeros_like(cond.concat)
        return [cond, Condition(self.empty, concat=cond.concat), Condition(self.empty, concat=nothing)]

    def combine(self, x, t, preds, schedule):
        both, image, none = preds

        def mix(a, b, c):
            return c + self.text * (a - b) + self.image * (b - c)

        return Prediction(mix(both.x0, image.x0, none.x0), mix(both.eps, image.eps, none.eps))

    def needs_grad(self, t):
        return False


@BATCH
def test_editing_by_instruction(batch):
    made = tiny.parts(8)
    backbone, prompts, pictures = ours(made), PROMPTS[:batch], tiny.images(batch)
    cond = Condition(tokens=backbone.tokens(prompts), concat=image_channels(backbone, pictures))
    guidance = ThreeBranches(SCALE, 1.5, backbone.tokens([""]))
    image = image_of(backbone, backbone, batch, cond, guidance)
    pipeline = StableDiffusionInstructPix2PixPipeline(**made, **QUIET)
    other = theirs(pipeline, batch, prompt=prompts, image=pictures / 2 + 0.5, guidance_scale=SCALE, image_guidance_scale=1.5)
    assert_same(image, other)
    scaled = replace(cond, concat=backbone.encode(pictures))
    assert_other(image_of(backbone, backbone, batch, scaled, guidance), other)


@BATCH
@pytest.mark.parametrize("guess", [False, True])
def test_controlnet(batch, guess):
    made, net = tiny.parts(), tiny.controlnet()
    backbone, prompts, hints = ours(made), PROMPTS[:batch], tiny.images(batch) / 2 + 0.5
    controlled = Controlled(backbone, {"edges": net}, {"edges": 0.7}, guess=guess)
    cond = Condition(tokens=backbone.tokens(prompts), control={"edges": hint(hints)})
    empty = Condition(tokens=backbone.tokens([""] * batch), control=cond.control)
    guidance = ClassifierFree(SCALE, without_control(empty) if guess else empty)
    image = image_of(backbone, controlled, batch, cond, guidance)
    pipeline = StableDiffusionControlNetPipeline(**made, controlnet=net, **QUIET)
    other = theirs(
        pipeline,
        batch,
        prompt=prompts,
        image=hints,
        guidance_scale=SCALE,
        controlnet_conditioning_scale=0.7,
        guess_mode=guess,
    )
    assert_same(image, other)


def test_two_controlnets():
    made, nets = tiny.parts(), [tiny.controlnet(4), tiny.controlnet(7)]
    backbone, hints = ours(made), tiny.images(2) / 2 + 0.5
    controlled = Controlled(backbone, {"edges": nets[0], "depth": nets[1]}, {"edges": 0.7, "depth": 0.2})
    control = {"edges": hint(hints[:1]), "depth": hint(hints[1:])}
    cond, empty = (Condition(tokens=backbone.tokens([text]), control=control) for text in (PROMPTS[0], ""))
    image = image_of(backbone, controlled, 1, cond, ClassifierFree(SCALE, empty))
    pipeline = StableDiffusionControlNetPipeline(**made, controlnet=MultiControlNetModel(nets), **QUIET)
    other = theirs(
        pipeline,
        1,
        prompt=PROMPTS[:1],
        image=[hints[:1], hints[1:]],
        guidance_scale=SCALE,
        controlnet_conditioning_scale=[0.7, 0.2],
    )
    assert_same(image, other)


@BATCH
def test_painting_by_example(batch):
    """Their order of channels and their mask are the opposite of inpainting's; the context is one token."""
    made = tiny.parts(9)
    torch.manual_seed(8)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=5, image_size=32, patch_size=8
    )
    encoder = PaintByExampleImageEncoder(config, proj_size=tiny.WIDTH).eval()
    backbone = LatentBackbone(made["unet"], made["vae"], made["scheduler"].config)
    pictures, keep = tiny.images(batch), 1 - tiny.masks(batch)
    examples = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    small = torch.nn.functional.interpolate(keep, size=tiny.LATENT)
    concat = torch.cat([backbone.encode(pictures * keep), small], dim=1)
    tokens, unconditional = encoder(examples, return_uncond_vector=True)
    guidance = ClassifierFree(5.0, Condition(tokens=unconditional, concat=concat))
    image = image_of(backbone, backbone, batch, Condition(tokens=tokens, concat=concat), guidance)
    pipeline = PaintByExamplePipeline(
        vae=made["vae"],
        image_encoder=encoder,
        unet=made["unet"],
        scheduler=made["scheduler"],
        safety_checker=None,
        feature_extractor=CLIPImageProcessorPil(),
    )
    other = theirs(pipeline, batch, example_image=examples, image=pictures, mask_image=1 - keep, guidance_scale=5.0)
    assert_same(image, other)
