"""Stable Diffusion 1.5 at its full size, random weights: what fits into the memory of a laptop must go on fitting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 12e9  # bytes
COUNTS = {"unet": 859_532_484, "vae": 83_653_863, "text_encoder": 123_060_480}


def edit_once() -> None:
    """Edit an image of 512 pixels by an instruction in one step of three lanes, in bfloat16; print the peak of memory."""
    import resource

    import torch

    from editkit.backbones.latent import LatentBackbone
    from editkit.training.instructed import InstructedEditor
    from editkit.types import EditRequest
    from tests.benchmarks.sizes import SIZES

    with torch.device("meta"):
        parts = SIZES["sd15"].parts(in_channels=8)
    for name, count in COUNTS.items():
        assert sum(weight.numel() for weight in parts[name].parameters()) == count, name
        fill(parts[name])
    networks = (parts["unet"], parts["vae"], parts["scheduler"].config, parts["text_encoder"], parts["tokenizer"])
    editor = InstructedEditor(LatentBackbone(*networks), name="instructpix2pix", steps=1)
    asked = [EditRequest("a.png", torch.zeros(3, 512, 512), instruction="make it old")]
    edited = editor.edit(asked, editor.prepare(asked))
    assert edited.images.shape == (1, 3, 512, 512) and edited.images.isfinite().all() and edited.images.std() > 0
    assert edited.scores["network_calls"] == [3.0]
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def fill(network) -> None:
    """Give a network on the meta device memory and small random weights in bfloat16; norms keep their scale."""
    import torch

    network.bfloat16().to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim == 1:
                weight.fill_(float(name.endswith("weight")))
            else:
                weight.normal_(std=0.02)
        for name, buffer in network.named_buffers():
            assert name.endswith("position_ids"), f"{name} would hold what was in memory before"
            buffer.copy_(torch.arange(buffer.shape[-1]))


@pytest.mark.slow
def test_one_edit_at_full_size_stays_within_memory():
    command = "from tests.backbones.test_full_size import edit_once; edit_once()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    peak = int(done.stdout.split()[-1])
    assert 2 * sum(COUNTS.values()) < peak < LIMIT, f"{peak / 1e9:.1f} GB"
