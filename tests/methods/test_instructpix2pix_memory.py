"""What the paper's training takes of a 24 GB card, counted at full size on the meta device: nothing is allocated."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from editkit import recipe

GIB = 2**30
TEXT_ENCODER, AUTOENCODER = 123_060_480, 83_653_863  # parameters of Stable Diffusion 1.5's
CONTEXT = 0.8 * GIB  # of CUDA and its libraries


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


@pytest.mark.slow
def test_the_papers_training_fits_a_card_of_24_gb():
    """Weights, gradients and Adam's state in float32, autocast's copies, the frozen networks, and a batch's activations."""
    trainer = recipe.compose(["recipe=paper/instructpix2pix", "data=encoded_edits"]).trainer
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, in_channels=8, cross_attention_dim=768)
        count = sum(weight.numel() for weight in unet.parameters())
        unet = unet.bfloat16().train()
        unet.enable_gradient_checkpointing()
        x = torch.empty(trainer.batch_size, 8, 32, 32, dtype=torch.bfloat16)
        text, times = torch.empty(trainer.batch_size, 77, 768, dtype=torch.bfloat16), torch.empty(trainer.batch_size)
    gc.collect()
    with Live() as live:
        unet(x, times, text).sample.float().square().mean().backward()
    parts = {
        "weights": 4 * count,
        "gradients": 4 * count,
        "Adam": 8 * count,
        "autocast": 2 * count,
        "average": 0 if trainer.ema_device == "cpu" else 4 * count,
        "frozen": 4 * (TEXT_ENCODER + AUTOENCODER),
        "activations": live.peak - 2 * count,  # the gradients of this half-precision copy
        "context": CONTEXT,
    }
    assert count == 859_532_484 and parts["activations"] > 0.5 * GIB
    total = sum(parts.values())
    assert total < 22 * GIB, {name: f"{size / GIB:.2f} GiB" for name, size in parts.items()}
    assert total + 4 * count > 22 * GIB, "with the average on the card as well there would be no room left"
