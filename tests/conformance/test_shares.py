"""Two processes with half the batch each make the updates of one with the whole batch, whatever the method."""

from __future__ import annotations

import pytest
import torch

from editkit import recipe
from editkit.errors import UsageError
from tests.conformance.shares import apart, train, weights

# The toy networks are trained once and by one process: composing and training them is tested elsewhere.
RECIPES = [pytest.param(name, marks=pytest.mark.slow) if "/" in name else name for name in recipe.choices("recipe")]

# What makes the loss a mean over samples that do not know of each other.
ALONE = {
    # without a shift |edited - source| is 0, where its gradient is the sign of what rounding left over
    "asyrp": ("method.zero_init=false", "method.n_train=6"),
    # else the first so many of a share get their times from another distribution
    **dict.fromkeys(("toy/faces_ddpm", "toy/cats_ddpm", "toy/dogs_ddpm"), ("method.focus=0",)),
    "toy/inpainting": ("method.objects=0", "method.everything=1", "method.terms.language=0"),  # boxes are drawn one by one
    "toy/latent": ("method.terms.language=0",),  # a mean over the tokens of all texts, and texts differ in length
    "toy/oracle": ("method.backbone=null",),  # else a third of each share is added to it
}

# Adds the same to all that a softmax compares: its gradient is 0, of which Adam makes steps out of what rounding left over.
POINTLESS = ".k_proj.bias"

# Losses that cannot be the same: they compare the samples of a process's share with each other.
MIXED = {
    "pixel-guided": "batch norm's statistics are those of the pixels of a share",
    "paper/pixel-guided": "batch norm's statistics are those of the pixels of a share",
    "toy/clip": "pictures and texts are contrasted with the others of their share",
    "toy/dino": "patches are contrasted with those of the other pictures of their share",
    "toy/identity": "people are told from the others of their share",
    "toy/scene_clip": "pictures and texts are contrasted with the others of their share",
    "toy/style_clip": "pictures and texts are contrasted with the others of their share",
    "toy/scene_oracle": "a mean over the labels that can be seen, of which shares hold different numbers",
}


def check(pair, assets, folder, name, *changes):
    try:
        train(name, assets, folder / "one", *changes)
    except UsageError as error:
        pytest.skip(str(error))
    pair.run(train, name, assets, folder / "two", *changes)
    one, two = ({n: w for n, w in weights(folder / k).items() if not n.endswith(POINTLESS)} for k in ("one", "two"))
    assert all(tensor.dtype == torch.float64 for tensor in one.values())
    assert apart(one, two) < 1e-9


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_make_the_updates_of_one(pair, assets, tmp_path, name):
    if name in MIXED:
        pytest.skip(MIXED[name])
    check(pair, assets, tmp_path, name, *ALONE.get(name, ()))


STEPWISE = "every call of the chain a step"
OTHERWISE = {
    STEPWISE: ("diffusionclip", "method.training=stepwise"),
    "a step of two batches": ("pbe", "trainer.accumulate=2"),
    "clipped and from other sources": ("asyrp", *ALONE["asyrp"], "method.clip_source=p_src", "trainer.clip_norm=0.01"),
    "low-rank layers": ("instructpix2pix", "method.lora={rank:2}"),
    "noise of each visit": ("effdiff", "method.latent_noise=fresh"),
    "no term for the decoder": (
        "cyclenet",
        "method.terms.reconstruction=0",
        "method.terms.consistency=0",
        "method.terms.cycle=0",
    ),
}


@pytest.mark.parametrize("setting", [one if one == STEPWISE else pytest.param(one, marks=pytest.mark.slow) for one in OTHERWISE])
def test_they_do_so_in_other_settings(pair, assets, tmp_path, setting):
    check(pair, assets, tmp_path, *OTHERWISE[setting])


@pytest.mark.slow
def test_the_comparison_sees_a_process_that_goes_alone(assets, tmp_path):
    train("effdiff", assets, tmp_path / "whole")
    train("effdiff", assets, tmp_path / "half", "trainer.batch_size=3")
    assert apart(weights(tmp_path / "whole"), weights(tmp_path / "half")) > 1e-6
