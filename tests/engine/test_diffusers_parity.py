"""Step for step with diffusers' schedulers, on the same UNet with the same random weights."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from editkit.backbones.pixel import PixelBackbone
from editkit.engine.invert import DDIM
from editkit.engine.multistep import dpmpp_2m
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddim, ddpm
from tests.engine.stand_ins import assert_near, tiny_unet

KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def backbone_of(scheduler, kind):
    # Their table: the comparison is of the steps, and their float32 table differs from ours in the sixth digit.
    return PixelBackbone(tiny_unet(), Schedule(scheduler.alphas_cumprod), kind)


def states_of(backbone, x, levels, **arguments):
    states = []
    with torch.no_grad():
        sample(backbone, x, levels, on_step=lambda i, j, x, pred: states.append(x), **arguments)
    return states


def walk(scheduler, unet, x, **arguments):
    states = []
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, **arguments).prev_sample
            states.append(x)
    return states


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("offset", "to_one"), [(0, True), (1, True), (1, False)])
def test_ddim(kind, offset, to_one, images):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=offset, set_alpha_to_one=to_one)
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler, KINDS[kind])
    levels = backbone.schedule.levels(20, spacing="leading", offset=offset, clean="one" if to_one else "ab0")
    same(states_of(backbone, images, levels), walk(scheduler, backbone.unet, images))


def test_the_left_out_no_op_step_changes_nothing(images):
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    backbone = backbone_of(scheduler, "eps")
    levels = backbone.schedule.levels(10, spacing="leading", clean="ab0")
    theirs = walk(scheduler, backbone.unet, images)
    assert_near(theirs[-1], theirs[-2])
    same(states_of(backbone, images, levels), theirs[:-1])


def test_ddim_on_a_grid_where_the_stride_shortcut_fails(images):
    """diffusers lands at t - T // N whatever the spacing; on linspace that is not the level the next query assumes."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler, "eps")
    ours = states_of(backbone, images, backbone.schedule.levels(20, spacing="linspace"))
    with pytest.raises(AssertionError):
        same(ours, walk(scheduler, backbone.unet, images))


def test_ddim_eta(images, noise):
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    backbone = backbone_of(scheduler, "eps")
    drawn, x, theirs = noise(images), images, []
    with torch.no_grad():
        for i, t in zip(range(10, 0, -1), scheduler.timesteps, strict=True):
            x = scheduler.step(backbone.unet(x, t).sample, t, x, eta=0.7, variance_noise=drawn(i)).prev_sample
            theirs.append(x)
    levels = backbone.schedule.levels(10, spacing="leading")
    same(states_of(backbone, images, levels, step=partial(ddim, eta=0.7), noise=drawn), theirs)


@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", "small"), ("fixed_large", "large")])
def test_ddpm_single_steps(kind, variance, images, noise):
    scheduler = DDPMScheduler(clip_sample=False, variance_type=kind)
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler, "eps")
    levels = backbone.schedule.levels(20, spacing="leading")
    for i in (20, 7, 2, 1):
        t = int(levels.times[i])
        with torch.no_grad():
            output = backbone.unet(images, t).sample
            pred = backbone(images, float(t))
        theirs = scheduler.step(output, t, images, generator=torch.Generator().manual_seed(i)).prev_sample
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(i))
        assert_near(ddpm(levels, i, i - 1, images, pred, [], drawn, variance=variance), theirs)


@pytest.mark.parametrize("n", [10, 20])
@pytest.mark.parametrize(("final", "clean"), [("zero", "one"), ("sigma_min", "ab0")])
def test_dpm_solver(n, final, clean, images):
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear", timestep_spacing="leading", steps_offset=1, final_sigmas_type=final
    )
    scheduler.set_timesteps(n)
    backbone = backbone_of(scheduler, "eps")
    times = sorted(scheduler.timesteps.tolist())
    levels = backbone.schedule.levels_at(times, clean=clean)
    same(states_of(backbone, images, levels, step=dpmpp_2m), walk(scheduler, backbone.unet, images))


@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_inversion_asking_at_the_target(to_one, images):
    scheduler = DDIMInverseScheduler(clip_sample=False, set_alpha_to_one=to_one, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler, "eps")
    levels = backbone.schedule.levels(20, spacing="leading", offset=1, clean="one" if to_one else "ab0")
    with torch.no_grad():
        ours = DDIM("target", pivots=True).invert(backbone, images, levels).states
    assert torch.equal(ours[0], images)
    same([ours[i] for i in range(1, 21)], walk(scheduler, backbone.unet, images))


def test_ddim_inversion_asking_at_the_source(images):
    """Against the pixel methods' rule written out: at each time the network sees its own state; alpha_bar moves one up."""
    backbone = PixelBackbone(tiny_unet(), Schedule.linear(), "eps")
    times = [int(999 * k / 19 + 1e-6) for k in range(20)]
    x = images
    with torch.no_grad():
        for t, above in itertools.pairwise(times):
            now, then = backbone.schedule.table[t].item(), backbone.schedule.table[above].item()
            eps = backbone.unet(x, t).sample
            x = then**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - then) ** 0.5 * eps
        ours = DDIM("source").invert(backbone, images, backbone.schedule.levels(20)).x
    assert_near(ours, x)
