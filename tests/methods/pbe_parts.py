"""A tiny Paint by Example: random weights in the published layout, and what is asked of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder, PaintByExamplePipeline
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from editkit.backbones.latent_folder import load_latent
from editkit.engine.rng import batch_noise
from editkit.methods.self_supervised.pbe import PaintByExample
from editkit.types import EditRequest
from tests.backbones import tiny_latent as tiny

SIDE = 24  # pixels of the encoder's pictures
STEPS = 10


def write_tower(folder: Path) -> Path:
    """Write a vision tower of five layers, for which the encoder has one block."""
    torch.manual_seed(8)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=5, image_size=SIDE, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


def method(tower: Path, **settings) -> PaintByExample:
    """Return a method on a text-to-image model, its new channels and blocks as they begin."""
    torch.manual_seed(9)
    given = {"backbone": tiny.backbone(), "steps": STEPS, "solver": "ddim"} | settings
    return PaintByExample(encoder=str(tower), optimizer=partial(torch.optim.AdamW, lr=3e-3), **given)


def trained(tower: Path, **settings) -> PaintByExample:
    """Return a method whose new parts say something, as if it had been trained."""
    made = method(tower, **settings)
    with torch.no_grad():
        made.backbone.unet.conv_in.weight[:, 4:].normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        for block in made.backbone.image_encoder.mapper.blocks:
            block.attn1.to_v.weight.mul_(4)
    return made


def references(count: int, height: int = SIDE, width: int = SIDE) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, height, width, generator=generator) * 2 - 1 for _ in range(count)]


def requests(count: int = 2, **changes) -> list[EditRequest]:
    """Return requests of different pictures and references, one mask."""
    pictures, shown = tiny.images(count), references(count)
    return [
        EditRequest(f"{k}.png", **{"image": pictures[k], "mask": tiny.masks()[0], "references": (shown[k],)} | changes)
        for k in range(count)
    ]


def painted(made: PaintByExample, asked: list[EditRequest], artefacts=()) -> torch.Tensor:
    editor = made.editor(artefacts)
    editor.check(asked)
    return editor.edit(asked, editor.prepare(asked)).images


def pipeline(folder, scheduler) -> PaintByExamplePipeline:
    """Build diffusers' pipeline from the parts of a folder, for its own one-call loading no longer works."""
    latent = load_latent(folder)
    made = PaintByExamplePipeline(
        vae=latent.vae,
        image_encoder=PaintByExampleImageEncoder.from_pretrained(folder / "image_encoder"),
        unet=latent.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=CLIPImageProcessorPil(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipe, made, asked, scale=5.0) -> torch.Tensor:
    pixels = torch.cat([made.backbone.preprocess(request.references[0][None]) for request in asked])
    images, masks = (torch.stack([getattr(request, name) for request in asked]) for name in ("image", "mask"))
    noise = batch_noise((4, tiny.LATENT, tiny.LATENT), [request.key for request in asked], seed=0, purpose="start")
    given = {"example_image": pixels, "image": images, "mask_image": masks, "latents": noise, "output_type": "pt"}
    with torch.no_grad():
        found = pipe(**given, num_inference_steps=STEPS, guidance_scale=scale).images
    return torch.as_tensor(found) * 2 - 1
