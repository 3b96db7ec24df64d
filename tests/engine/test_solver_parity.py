"""The solvers of latent models step for step with diffusers' schedulers, on the same UNet with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from editkit.backbones.pixel import PixelBackbone
from editkit.backbones.scheduler_config import for_solver
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.solvers import SOLVERS
from editkit.errors import UsageError
from tests.engine.stand_ins import assert_near, tiny_unet

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SHARE = 1e-5


def backbone_of(scheduler, kind="eps", **more):
    return PixelBackbone(tiny_unet(), Schedule(scheduler.alphas_cumprod, **more), kind)


def ours(backbone, x, levels, name, **arguments):
    states = []
    with torch.no_grad():
        walk = SOLVERS[name].walk(levels)
        sample(backbone, x, on_step=lambda i, j, x, pred: states.append(x), **walk, **arguments)
    return states


def theirs(scheduler, unet, x):
    states = []
    with torch.no_grad():
        for n, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, t)
            generator = torch.Generator().manual_seed(len(scheduler.timesteps) - n)
            more = {"generator": generator} if isinstance(scheduler, EulerAncestralDiscreteScheduler) else {}
            x = scheduler.step(unet(scaled, t).sample, t, x, **more).prev_sample
            states.append(x)
    return states


def same(mine, others, share=SHARE):
    assert len(mine) == len(others)
    for one, other in zip(mine, others, strict=True):
        assert_near(one, other, share)


def drawn_for(like):
    return lambda i: torch.randn(like.shape, generator=torch.Generator().manual_seed(i))


class ExactPNDM(PNDMScheduler):
    """PNDM between neighbours of its own list of times: the original takes t - T // N, whatever the spacing."""

    def _get_prev_sample(self, sample, timestep, prev_timestep, model_output):
        first = 0 if self.counter < 2 else self.counter - 1
        listed = [self.timesteps[0], *self.timesteps[2:], -1]
        return super()._get_prev_sample(sample, int(listed[first]), int(listed[first + 1]), model_output)


# ----------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("n", [2, 20, 25, 27, 48, 50, 96])
def test_times_and_ends_of_stable_diffusion(n):
    """What a Stable Diffusion folder says (leading, offset 1, no alpha_bar of 1), through each scheduler's own grid."""
    schedule = Schedule.scaled_linear()
    shared = {**SD, "steps_offset": 1}
    grids = [
        (DDIMScheduler(**shared, set_alpha_to_one=False), {"spacing": "leading", "offset": 1, "clean": "ab0"}),
        (UniPCMultistepScheduler(**shared), {"spacing": "linspace", "skip": 1}),
        (UniPCMultistepScheduler(**shared, timestep_spacing="leading"), {"spacing": "leading", "offset": 1, "skip": 1}),
        (EulerAncestralDiscreteScheduler(**shared, timestep_spacing="leading"), {"spacing": "leading", "offset": 1}),
        (DDIMScheduler(**shared, timestep_spacing="trailing"), {"spacing": "trailing"}),
        (PNDMScheduler(**shared, skip_prk_steps=True, timestep_spacing="trailing"), {"spacing": "trailing"}),
        (PNDMScheduler(**shared, skip_prk_steps=True, timestep_spacing="linspace"), {"spacing": "linspace"}),
    ]
    for scheduler, grid in grids:
        scheduler.set_timesteps(n)
        levels = schedule.levels(n, **grid)
        assert list(levels.times[:0:-1]) == list(dict.fromkeys(scheduler.timesteps.tolist())), (type(scheduler), grid)
        assert levels.alpha_bar[0] == (float(schedule.table[0]) if grid.get("clean") == "ab0" else 1)
    euler = EulerAncestralDiscreteScheduler(**shared)
    euler.set_timesteps(n)
    levels = schedule.levels(n, spacing="continuous")
    assert np.array_equal(np.array(levels.times[:0:-1], dtype=np.float32), euler.timesteps.numpy())


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_the_extra_query_of_plms_is_at_the_same_time(n):
    scheduler = PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(n)
    levels = SOLVERS["plms"].walk(Schedule.scaled_linear().levels(n, spacing="leading", offset=1, clean="ab0"))["levels"]
    assert list(levels.times[:0:-1]) == scheduler.timesteps.tolist()


def test_sigma_between_whole_times():
    scheduler = EulerDiscreteScheduler(**SD)
    schedule = Schedule(scheduler.alphas_cumprod, linear_in="sigma")
    scheduler.set_timesteps(37)
    levels = schedule.levels(37, spacing="continuous")
    sigmas = [levels.noise(i) / levels.signal(i) for i in range(37, -1, -1)]
    np.testing.assert_allclose(sigmas, scheduler.sigmas.numpy(), rtol=2e-6)
    assert torch.equal(schedule.alpha_bar(torch.arange(1000)), schedule.table) and schedule.alpha_bar(-1) == 1
    plain = Schedule(schedule.table).levels(37, spacing="continuous")
    assert max(abs(a / b - 1) for a, b in zip(plain.alpha_bar, levels.alpha_bar, strict=True)) > 1e-5
    with pytest.raises(ValueError, match="infinite"):
        Schedule(schedule.zero_terminal_snr().table, linear_in="sigma")
    with pytest.raises(ValueError, match="choose from alpha_bar, sigma"):
        Schedule(schedule.table, linear_in="time")


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("ddim", DDIMScheduler),
        ("euler", EulerDiscreteScheduler),
        ("euler-ancestral", EulerAncestralDiscreteScheduler),
        ("dpmpp-2m", DPMSolverMultistepScheduler),
        ("unipc", UniPCMultistepScheduler),
    ],
)
def test_a_solver_has_the_levels_of_the_scheduler_that_a_folder_names_for_it(name, build):
    config = for_solver(SD, name)
    scheduler = build.from_config(config)
    assert config["_class_name"] == build.__name__
    scheduler.set_timesteps(20)
    levels = SOLVERS[name].levels(Schedule.scaled_linear(), 20)
    assert np.allclose(levels.times[:0:-1], scheduler.timesteps.numpy(), atol=1e-4)
    if name != "ddim":
        assert levels.alpha_bar[0] == 1
        sigma = levels.noise(20) / levels.signal(20)
        assert sigma == pytest.approx(float(scheduler.sigmas[0]), rel=1e-5)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc"])
def test_a_checkpoint_whose_times_end_at_pure_noise_keeps_them_whatever_the_solver(name):
    config = for_solver({**SD, "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, name)
    builders = {"ddim": DDIMScheduler, "dpmpp-2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    scheduler = builders[name].from_config(config)
    scheduler.set_timesteps(20)
    levels = SOLVERS[name].levels(Schedule.scaled_linear().zero_terminal_snr(), 20, trailing=True)
    assert levels.times[:0:-1] == tuple(scheduler.timesteps.tolist()) and levels.times[-1] == 999
    assert SOLVERS["euler"].levels(Schedule.scaled_linear(), 20, trailing=True).times[-1] == 999


def test_a_solver_that_interpolates_sigma_refuses_a_schedule_without_an_end():
    with pytest.raises(UsageError, match="choose another solver"):
        SOLVERS["euler"].levels(Schedule.scaled_linear().zero_terminal_snr(), 20)
    assert SOLVERS["ddim"].levels(Schedule.scaled_linear().zero_terminal_snr(), 20).alpha_bar[-1] > 0


# ------------------------------------------------------------------------------------------------------------ solvers


@pytest.mark.parametrize("ancestral", [False, True])
@pytest.mark.parametrize(
    ("kind", "spacing"),
    [("epsilon", "leading"), ("v_prediction", "trailing"), ("epsilon", "linspace"), ("v_prediction", "linspace")],
)
def test_euler(ancestral, kind, spacing, images):
    build = EulerAncestralDiscreteScheduler if ancestral else EulerDiscreteScheduler
    scheduler = build(**SD, prediction_type=kind, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler, KINDS[kind], linear_in="sigma")
    levels = backbone.schedule.levels(20, spacing="continuous" if spacing == "linspace" else spacing, offset=1)
    name = "euler-ancestral" if ancestral else "euler"
    mine = ours(backbone, images, levels, name, noise=drawn_for(images))
    others = theirs(scheduler, backbone.unet, images / levels.signal(20))  # their state is x / a
    same(mine, [levels.signal(19 - n) * state for n, state in enumerate(others)])


@pytest.mark.parametrize(
    ("spacing", "n", "to_one"),
    [("leading", 20, False), ("leading", 15, True), ("trailing", 10, False), ("linspace", 12, False), ("leading", 2, False)],
)
def test_plms(spacing, n, to_one, images):
    build = ExactPNDM if spacing == "linspace" else PNDMScheduler
    scheduler = build(
        **SD, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=to_one, timestep_spacing=spacing, prediction_type="epsilon"
    )
    scheduler.set_timesteps(n)
    backbone = backbone_of(scheduler)
    levels = backbone.schedule.levels(n, spacing=spacing, offset=1, clean="one" if to_one else "ab0")
    others = theirs(scheduler, backbone.unet, images)
    if spacing == "linspace" and not to_one:
        others = others[:-1]  # the no-op from time 0 to its own alpha_bar
    same(ours(backbone, images, levels, "plms"), others)


def test_plms_without_its_extra_query_is_another_solver(images):
    scheduler = PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler)
    levels = backbone.schedule.levels(20, spacing="leading", offset=1, clean="ab0")
    with torch.no_grad():
        plain = sample(backbone, images, levels, step=SOLVERS["plms"].step)
    with pytest.raises(AssertionError):
        assert_near(plain, theirs(scheduler, backbone.unet, images)[-1], 1e-3)


@pytest.mark.parametrize(
    ("kind", "spacing", "final", "n"),
    [
        ("epsilon", "leading", "zero", 20),
        ("epsilon", "linspace", "zero", 20),
        ("epsilon", "trailing", "sigma_min", 20),
        ("v_prediction", "trailing", "zero", 20),
        ("sample", "leading", "sigma_min", 9),
        ("epsilon", "linspace", "zero", 3),
        ("epsilon", "linspace", "zero", 1),
    ],
)
def test_unipc(kind, spacing, final, n, images):
    scheduler = UniPCMultistepScheduler(
        **SD, prediction_type=kind, timestep_spacing=spacing, steps_offset=1, final_sigmas_type=final
    )
    scheduler.set_timesteps(n)
    backbone = backbone_of(scheduler, KINDS[kind])
    levels = backbone.schedule.levels(
        n, spacing=spacing, offset=1, clean="one" if final == "zero" else "ab0", skip=0 if spacing == "trailing" else 1
    )
    same(ours(backbone, images, levels, "unipc"), theirs(scheduler, backbone.unet, images))


# -------------------------------------------------------------------------------------------- zero terminal SNR, v


@pytest.mark.parametrize(("n", "to_one"), [(10, True), (20, False)])
def test_ddim_from_pure_noise(n, to_one, images):
    scheduler = DDIMScheduler(
        **SD,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=to_one,
    )
    scheduler.set_timesteps(n)
    backbone = backbone_of(scheduler, "v")
    levels = backbone.schedule.levels(n, spacing="trailing", clean="one" if to_one else "ab0")
    assert levels.alpha_bar[-1] == 0
    same(ours(backbone, images, levels, "ddim"), theirs(scheduler, backbone.unet, images))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("unipc", UniPCMultistepScheduler),
        ("dpmpp-2m", DPMSolverMultistepScheduler),
        ("euler", EulerDiscreteScheduler),
        ("euler-ancestral", EulerAncestralDiscreteScheduler),
    ],
)
def test_solvers_whose_schedulers_clamp_the_last_alpha_bar(name, build, images):
    """diffusers puts 2^-24 in place of the 0 that it cannot divide by; at that value we agree with it."""
    scheduler = build(**SD, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction")
    scheduler.set_timesteps(20)
    backbone = backbone_of(scheduler, "v")
    levels = backbone.schedule.levels(20, spacing="trailing")
    assert levels.alpha_bar[-1] == 2**-24
    euler = name.startswith("euler")
    mine = ours(backbone, images, levels, name, noise=drawn_for(images))
    others = theirs(scheduler, backbone.unet, images / levels.signal(20) if euler else images)
    same(mine, [levels.signal(19 - n) * state for n, state in enumerate(others)] if euler else others, 2e-5)
