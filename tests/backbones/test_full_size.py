"""Stable Diffusion 1.5 at its full size, random weights: what fits into the memory of a laptop must go on fitting."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 12 * 2**30


def edit_once() -> None:
    """Encode an image of 512 pixels, take one guided step from half way, decode; all networks in bfloat16."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from editkit.backbones.attention import constant_text
    from editkit.backbones.latent import LatentBackbone
    from editkit.engine.guidance import ClassifierFree
    from editkit.engine.sample import sample
    from editkit.types import EditRequest
    from tests.backbones import tiny_latent as tiny

    torch.set_default_dtype(torch.bfloat16)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
    )
    torch.set_default_dtype(torch.float32)
    backbone = LatentBackbone(unet, vae, tiny.scheduler().config, text, tiny.tokenizer())
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964
    assert backbone.image_size == (512, 512)
    with torch.no_grad(), constant_text(backbone):
        levels = backbone.schedule.levels(2, spacing="leading", offset=1, clean="ab0")
        x0 = backbone.encode(torch.zeros(1, 3, 512, 512))
        x = backbone.schedule.add_noise(x0, levels.times[-1], torch.randn(x0.shape))
        cond, empty = (backbone.condition(EditRequest("a.png", prompt=text)) for text in ("a face", None))
        edited = sample(backbone, x, levels, cond, guidance=ClassifierFree(7.5, empty), stop=1)
        image = backbone.decode(edited)
    assert image.shape == (1, 3, 512, 512) and image.isfinite().all()


@pytest.mark.slow
def test_one_step_at_full_size_stays_within_memory():
    command = "from tests.backbones.test_full_size import edit_once; edit_once()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < LIMIT, f"{peak / 2**30:.1f} GiB"
