"""What the training of paper/instructpix2pix takes of a card, counted at full size on the meta device: nothing is allocated.

    python -m tests.benchmarks.tuning_memory --update README.md

Gradients, the optimiser's state and the half copies that autocast keeps are those of the parameters that are trained. What a
batch's forward and backward pass holds is the peak of the storages that are alive, with attention in one piece and the blocks
run again in the backward pass. 8-bit Adam counts two bytes for each parameter and two scales for each block of 256.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from editkit import recipe
from editkit.app.markdown import insert
from editkit.networks.lora import Lora, add_lora, lora_parameters
from editkit.training.as_on_gpu import AsOnGpu, differentiate
from editkit.training.live import Live

GIB = 2**30
TEXT_ENCODER, AUTOENCODER = 123_060_480, 83_653_863  # parameters of Stable Diffusion 1.5's
CONTEXT = 0.8 * GIB  # of CUDA and its libraries
EIGHT_BIT = "method.optimizer._target_=bitsandbytes.optim.AdamW8bit"
ROWS: Mapping[str, Sequence[str]] = {
    "all of the UNet, AdamW": [],
    "all of the UNet, 8-bit AdamW": [EIGHT_BIT, "~method.optimizer.fused"],
    "low-rank layers, AdamW": ["method.lora={rank: 16}"],
}


def parts(overrides: Sequence[str] = ()) -> dict[str, float]:
    """Return the bytes of each part of the training with these overrides."""
    cfg: Any = recipe.compose(["recipe=paper/instructpix2pix", "data=encoded_edits", *overrides])
    plan, lora, adam = cfg.trainer, Lora.of(cfg.method.lora), str(cfg.method.optimizer._target_)
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, in_channels=8, cross_attention_dim=768)
        if lora is not None:
            unet.requires_grad_(False)
            add_lora(unet, lora)
            unet.conv_in.requires_grad_(True)
            assert all(parameter.requires_grad for parameter in lora_parameters(unet))
        unet = unet.bfloat16().train()
        unet.enable_gradient_checkpointing()
        x = torch.empty(plan.batch_size, 8, 32, 32, dtype=torch.bfloat16)
        text, times = torch.empty(plan.batch_size, 77, 768, dtype=torch.bfloat16), torch.empty(plan.batch_size)
    every = sum(weight.numel() for weight in unet.parameters())
    trained = sum(weight.numel() for weight in unet.parameters() if weight.requires_grad)
    for weight in unet.parameters():
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None  # of the batches before
    gc.collect()
    with AsOnGpu(), Live() as live:
        differentiate(unet(x, times, text).sample.float().square().mean())
    return {
        "weights": 4 * every,
        "autocast": 2 * trained,
        "gradients": 4 * trained,
        "Adam": trained * (2 + 2 * 4 / 256 if "8bit" in adam else 8),
        "average": 0 if plan.ema_device == "cpu" else 4 * trained,
        "frozen": 4 * (TEXT_ENCODER + AUTOENCODER),
        "activations": live.peak,
        "context": CONTEXT,
    }


def table() -> str:
    """Count and return the table in Markdown."""
    lines = [
        "| what is trained | weights and their half copy | gradients | optimiser | a batch | all, GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, overrides in ROWS.items():
        size = {part: value / GIB for part, value in parts(overrides).items()}
        shown = (size["weights"] + size["autocast"], size["gradients"], size["Adam"], size["activations"])
        told = " ".join(f"'{text}'" if " " in text or "~" in text else text for text in overrides)
        label = f"{name}: `{told}`" if told else name
        lines.append(f"| {label} | {' | '.join(f'{value:.1f}' for value in shown)} | **{sum(size.values()):.1f}** |")
    beside = (TEXT_ENCODER + AUTOENCODER) * 4 / GIB + CONTEXT / GIB
    return "\n".join(
        [*lines, "", f"In all: also {beside:.1f} GiB of frozen networks and CUDA; the moving average is in main memory.", ""]
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, help="Markdown file with the lines <!-- memory --> and <!-- /memory -->")
    options = parser.parse_args()
    text = table()
    print(text)
    if options.update:
        insert(options.update, "memory", text)


if __name__ == "__main__":
    main()
