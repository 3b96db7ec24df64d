"""How fast InstructPix2Pix trains on pictures that were encoded once, beside a loop that encodes them in every step.

    python -m tests.benchmarks.instruction_training --update README.md
    python -m tests.benchmarks.instruction_training --size sd15 --device cuda --precision bf16 --batch 16

The other loop is in the manner of diffusers' example train_instruct_pix2pix.py, in our own words: at each step both pictures go
through the autoencoder, the instructions and the empty one through the text encoder. Both sides train the same UNet by the
same optimiser, and what they make of a batch must agree before anything is timed. Reading pictures costs neither side time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from editkit.backbones.autoencoder import Autoencoder
from editkit.backbones.latent import LatentBackbone
from editkit.data.encoded import EncodedDataset, drawn
from editkit.data.items import collate
from editkit.methods.fully_supervised.instructpix2pix import InstructPix2Pix
from tests.benchmarks.measuring import in_turn, machine, positive, publish, wait
from tests.benchmarks.sizes import SIZES
from tests.methods.instructpix2pix_parts import TEXTS, method

NEAR = 1e-2  # what is kept is kept in half precision
DROPPED = 0.05


@dataclass
class Work:
    """What both sides train on, and with.

    Attributes:
        method: ours.
        pairs: items with pictures.
        kept: the same, encoded.
        seconds: that encoding took, of one pair.
    """

    method: InstructPix2Pix
    pairs: Sequence[Mapping[str, Any]]
    kept: EncodedDataset
    seconds: float
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.method.backbone.unet.parameters(), lr=1e-5)


def work(size: str, count: int, device: str, folder: Path) -> Work:
    """Build the networks and `count` pairs, and encode them."""
    made = SIZES[size]
    parts = made.parts()
    backbone = LatentBackbone(
        parts["unet"], parts["vae"], parts["scheduler"].config, parts["text_encoder"], parts["tokenizer"]
    ).to(device)
    pictures = made.images(count)
    pairs = [
        {"key": str(k), "image": picture, "target": picture.flip(2), "instruction": TEXTS[k % len(TEXTS)]}
        for k, picture in enumerate(pictures)
    ]
    began = time.perf_counter()
    kept = EncodedDataset(pairs, Autoencoder(backbone.vae), ("image", "target"), folder)  # type: ignore[arg-type]
    kept.prepare()
    wait(device)
    return Work(method(backbone=backbone, dropped=DROPPED), pairs, kept, (time.perf_counter() - began) / count)


# Ours, as `editkit train recipe=instructpix2pix` runs it.


def ours(job: Work) -> None:
    """Take one step on encoded pictures."""
    for update in job.method.updates(encoded(job)):
        _step(job, update.total())


def encoded(job: Work) -> dict[str, Any]:
    """Return the batch from what was kept."""
    batch = collate([job.kept[k] for k in range(len(job.kept))])
    return {name: value.to(job.method.device) if isinstance(value, Tensor) else value for name, value in batch.items()}


# In the manner of the example.


def example(job: Work, scheduler: DDPMScheduler) -> None:
    """Take one step on pictures."""
    backbone, count, device = job.method.backbone, len(job.pairs), job.method.device
    latents, image, text = conditions(job)
    noise, t = torch.randn_like(latents), torch.randint(0, scheduler.config.num_train_timesteps, (count,), device=device)
    with torch.no_grad():
        empty = backbone.text_encoder(_ids(backbone, [""])).last_hidden_state
    u = torch.rand(count, 1, 1, device=device)
    text = torch.where(u < 2 * DROPPED, empty, text)
    image = image * ((u < DROPPED) | (u >= 3 * DROPPED))[..., None]
    noisy = torch.cat([scheduler.add_noise(latents, noise, t), image], dim=1)
    _step(job, F.mse_loss(backbone.unet(noisy, t, text).sample.float(), noise))


@torch.no_grad()
def conditions(job: Work) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's latents, the image's and the instructions' tokens, all made anew."""
    backbone, device = job.method.backbone, job.method.device
    image, target = (torch.stack([pair[name] for pair in job.pairs]).to(device) for name in ("image", "target"))
    latents = backbone.vae.encode(target).latent_dist.sample() * backbone.vae.config.scaling_factor
    text = backbone.text_encoder(_ids(backbone, [pair["instruction"] for pair in job.pairs])).last_hidden_state
    return latents, backbone.vae.encode(image).latent_dist.mode(), text


def _ids(backbone: LatentBackbone, texts: Sequence[str]) -> Tensor:
    length = backbone.text_encoder.config.max_position_embeddings
    return backbone.tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids.to(backbone.device)


def _step(job: Work, loss: Tensor) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(job.method.backbone.unet.parameters(), 1.0)
    job.optimizer.step()
    job.optimizer.zero_grad()


# Measuring.


def check(job: Work) -> None:
    """Compare what both sides make of the batch.

    Raises:
        SystemExit: it differs.
    """
    batch, backbone, job.method.dropped = encoded(job), job.method.backbone, 0.0
    told = job.method.condition(batch)
    job.method.dropped = DROPPED
    mine = (drawn(batch["target_posterior"]) * backbone.vae.config.scaling_factor, told.concat, told.tokens)
    for name, one, other in zip(("target", "image", "text"), mine, conditions(job), strict=True):
        if not (apart := float((one - other).abs().max())) <= NEAR:
            raise SystemExit(f"the two sides' {name} is {apart:.2g} apart, so nothing is timed; mend one side first")


def table(options: argparse.Namespace) -> str:
    """Measure and return the table in Markdown."""
    half = options.precision == "bf16"
    with tempfile.TemporaryDirectory() as folder:
        job = work(options.size, options.batch, options.device, Path(folder))
        check(job)
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        sides: tuple[Callable[[], None], ...] = (partial(ours, job), partial(example, job, scheduler))
        with torch.autocast(job.method.device.type, torch.bfloat16) if half else nullcontext():
            mine, theirs = in_turn(sides, options.repeats, options.device)
    epochs = job.seconds * options.batch / max(theirs - mine, 1e-9)
    cells = f"{mine:.3f} | {theirs:.3f} | **{theirs / mine:.2f}** | {job.seconds:.3f} | {epochs:.1f}"
    heads = (
        "batch",
        "editkit, s/step",
        "encoding in each step, s/step",
        "times faster",
        "encoding once, s/pair",
        "repaid in epochs",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{'---:|' * len(heads)}", f"| {options.batch} | {cells} |", ""]
    what = f"{options.size} networks, {SIZES[options.size].pixels} pixels, precision {options.precision}"
    return "\n".join([*lines, f"{what}, medians of {options.repeats} steps; {machine(options.device)}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="medium", help="sd15 is the true architecture, for GPUs")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--update", type=Path, help="Markdown file with the marks of instruction-speed")
    options = parser.parse_args(arguments)
    publish(parser, "instruction-speed", options.update, partial(table, options))


if __name__ == "__main__":
    main()
