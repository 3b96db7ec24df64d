"""Tiny parts for the Asyrp tests: a random UNet, a CLIP with known answers, a data set in memory."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from editkit.backbones.features import PerceptualNet
from editkit.backbones.pixel import PixelBackbone
from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.methods.weakly_supervised.asyrp import Asyrp, AsyrpEditor
from editkit.methods.weakly_supervised.asyrp.process import Attribute, Phases
from editkit.networks.delta import DdpmDelta
from editkit.training.plan import Plan
from editkit.training.stepper import Stepper
from editkit.types import EditRequest


def tiny_backbone(seed=0, **changes) -> PixelBackbone:
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    return PixelBackbone(UNet2DModel(**(config | changes)), Schedule.linear(), "v")


class TinyClip(torch.nn.Module):
    """Embeds an image by its channel means and a text by its letters, and counts the images that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def image(self, images):
        self.seen += len(images)
        return F.normalize(images.mean((2, 3)) + torch.tensor([0.6, 0.3, 0.1]), dim=-1)

    def text(self, texts):
        rows = [[len(text) % 7 + 1, text.count("s") + 1, text.count("a") + 2] for text in texts]
        return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


class Images:
    """A data set and its data module at once."""

    def __init__(self, count=4, size=8):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(count, 3, size, size, generator=generator) * 2 - 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        return {"image": self.images[k], "key": f"image/{k}"}

    def train_dataset(self):
        return self

    validation_dataset = test_dataset = train_dataset

    def requests(self, **changes):
        return [EditRequest(key=f"image/{k}", image=image, **changes) for k, image in enumerate(self.images)]

    def batch(self, rows):
        return {"image": self.images[rows], "key": [f"image/{k}" for k in rows]}


def tiny_method(backbone=None, clip=None, **changes) -> Asyrp:
    torch.manual_seed(3)
    settings = {
        "prompt": "a smiling face",
        "source_prompt": "a face",
        "n_inv": 6,
        "n_train": 6,
        "n_test": 6,
        "t_edit": 400,
        "t_boost": 0,
        "task_images": 3,
        "strengths": (-1, 1, 3),
        "optimizer": partial(torch.optim.SGD, lr=0.1),
        "perceptual": lambda: PerceptualNet((4, 8)),
    }
    clip = clip or TinyClip()
    return Asyrp(backbone=backbone or tiny_backbone(), clip=lambda: clip, **(settings | changes))


def ready(method: Asyrp, **plan) -> Asyrp:
    """Do what a run does before its first batch, without a Trainer."""
    method.prepare_training()
    method.freeze_rest()
    method.train()
    method.stepper = Stepper(method, Plan(**{"steps": 100, "batch_size": 2} | plan))
    method.stepper.make_optimizers()
    return method


def delta_of(backbone, seed=0):
    torch.manual_seed(seed)
    block = DdpmDelta(backbone.bottleneck_shape[0], backbone.time_width).requires_grad_(False)
    return lambda h, temb, t: block(h, temb)


def attribute(backbone, seed=0, t_edit=400.0, **changes):
    phases = Phases(t_edit, changes.pop("t_boost", 0.0))
    return Attribute(f"attribute {seed}", delta_of(backbone, seed), phases, 6, **changes)


def editor_of(backbone, *attributes, **settings):
    return AsyrpEditor(backbone, attributes, **({"n_inv": 6, "n_test": 6, "measure": False} | settings))


def reconstruction(backbone, images, n=6):
    levels = backbone.schedule.levels(n)
    with torch.no_grad():
        return sample(backbone, DDIM(query="source").invert(backbone, images.images, levels).x, levels)
