"""Masked sampling: the source outside the mask at every level, and nothing but sampling inside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from editkit.engine.blend import MaskedSource, latent_mask, paste
from editkit.engine.ode import DDIM
from editkit.engine.sample import sample
from editkit.errors import UserError
from tests.engine.stand_ins import SHAPE, Wavy, random


@pytest.fixture
def levels(wavy):
    return wavy.schedule.levels(8, spacing="leading")


def half():
    mask = torch.zeros(3, 1, *SHAPE[1:], dtype=torch.float64)
    mask[..., :2] = 1
    return mask


def start(x0):
    return random(x0.shape, 11)


def test_a_mask_of_ones_is_plain_sampling_and_one_of_zeros_the_source_bit_for_bit(wavy, x0, levels, noise):
    x = start(x0)
    for kind in (torch.ones, torch.zeros):
        blend = MaskedSource(levels, x0, kind(3, 1, *SHAPE[1:], dtype=torch.float64), noise(x0))
        out = sample(wavy, x, levels, on_step=blend)
        assert torch.equal(out, sample(wavy, x, levels) if kind is torch.ones else x0)


def test_outside_the_mask_the_state_is_the_source_at_the_level_it_is_at(wavy, x0, levels, noise):
    mask, drawn, seen = half(), noise(x0), []
    blend = MaskedSource(levels, x0, mask, drawn)

    def watched(i, j, x, pred):
        seen.append((j, blend(i, j, x, pred)))
        return seen[-1][1]

    out = sample(wavy, start(x0), levels, on_step=watched)
    assert [j for j, _ in seen] == list(range(len(levels) - 2, -1, -1))
    for j, x in seen[:-1]:
        known = levels.signal(j) * x0 + levels.noise(j) * drawn(j)
        assert torch.equal(x[..., 2:], known[..., 2:]) and not torch.equal(x[..., :2], known[..., :2])
    assert torch.equal(out[..., 2:], x0[..., 2:]), "the last step leaves the source clean"


def test_blending_at_the_level_before_the_step_leaves_noise_behind(wavy, x0, levels, noise):
    """Easy wrong version: the source at level i instead of j."""

    class Late(MaskedSource):
        def __call__(self, i, j, x, pred):
            return super().__call__(i, i, x, pred)

    out = sample(wavy, start(x0), levels, on_step=Late(levels, x0, half(), noise(x0)))
    assert (out - x0)[..., 2:].abs().max() > 1e-3


def test_the_last_step_is_clean_also_where_level_zero_is_not(wavy, x0, noise):
    levels = wavy.schedule.levels(8, spacing="leading", clean="ab0")
    assert levels.alpha_bar[0] < 1
    out = sample(wavy, start(x0), levels, on_step=MaskedSource(levels, x0, half(), noise(x0)))
    assert torch.equal(out[..., 2:], x0[..., 2:])


def test_noise_is_fresh_at_every_level_and_belongs_to_the_image(x0, levels, noise):
    blend = MaskedSource(levels, x0, half(), noise(x0))
    drawn = [(blend.at(j) - levels.signal(j) * x0) / levels.noise(j) for j in (3, 4)]
    assert abs(torch.corrcoef(torch.stack([each.flatten() for each in drawn]))[0, 1]) < 0.3
    alone = MaskedSource(levels, x0[:1], half()[:1], noise(x0[:1]))
    assert torch.equal(alone.at(3), blend.at(3)[:1])


def test_pivots_take_the_place_of_noise(wavy, x0, levels):
    pivots = DDIM(query="target", pivots=True).invert(wavy, x0, levels).states
    blend = MaskedSource(levels, x0, half(), pivots=pivots)
    assert all(torch.equal(blend.at(j), pivots[j]) for j in range(1, len(levels)))
    out = sample(wavy, pivots[len(levels) - 1], levels, on_step=blend)
    assert torch.equal(out[..., 2:], x0[..., 2:])
    sparse = DDIM(query="target").invert(wavy, x0, levels).states
    with pytest.raises(ValueError, match="pivots=True"):
        MaskedSource(levels, x0, half(), pivots=sparse).at(3)
    with pytest.raises(ValueError, match="noise="):
        MaskedSource(levels, x0, half())
    with pytest.raises(ValueError, match="latent_mask"):
        MaskedSource(levels, x0, torch.ones(3, 1, 9, 9), pivots=sparse)


def test_an_inversion_that_enters_above_the_clean_end_still_ends_at_the_source(wavy, x0):
    levels = wavy.schedule.levels(8)
    assert levels.entry == 1
    pivots = DDIM(pivots=True).invert(wavy, x0, levels).states
    out = sample(wavy, pivots[8], levels, on_step=MaskedSource(levels, x0, half(), pivots=pivots))
    assert torch.equal(out[..., 2:], x0[..., 2:])


def test_gradients_pass_through_the_inside_alone(x0, levels, noise):
    trained = Wavy()
    x = start(x0).requires_grad_()
    blend = MaskedSource(levels, x0, half(), noise(x0))
    out = sample(trained, x, levels, start=2, stop=1, on_step=blend)
    assert torch.autograd.grad(out[..., 2:].sum(), x, retain_graph=True)[0].abs().max() == 0
    assert torch.autograd.grad(out[..., :2].sum(), x)[0].abs().max() > 0


# ------------------------------------------------------------------------------------------------------------ masks


def test_a_latent_mask_is_hard_and_takes_the_nearest_pixel():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 3:17, 6:22] = 1
    small = latent_mask(mask, (4, 4))
    # The centres of the cells of 8 x 8 pixels lie at 4, 12, 20 and 28.
    assert small[0, 0].tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    soft = F.interpolate(mask, (4, 4), mode="bilinear", align_corners=False, antialias=True)
    assert set(small.unique().tolist()) == {0, 1} and len(soft.unique()) > 2, "a bilinear mask would have soft edges"
    assert torch.equal(
        latent_mask(torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), (8, 8)).unique(), torch.tensor([0.0, 1.0])
    )
    same = (random((2, 1, 8, 8), 3, torch.float32) > 0).float()
    assert torch.equal(latent_mask(same, (8, 8)), same)


def test_soft_latent_masks_mix_source_and_edit(wavy, x0, levels, noise):
    """Easy wrong version: a bilinear mask, under which neither the edit nor the source is left alone."""
    large = F.interpolate(half(), scale_factor=3, mode="nearest").roll(1, -1)
    hard, soft = latent_mask(large, SHAPE[1:]).double(), F.interpolate(large, SHAPE[1:], mode="bilinear", antialias=True)
    outs = [sample(wavy, start(x0), levels, on_step=MaskedSource(levels, x0, m, noise(x0))) for m in (hard, soft)]
    outside = (hard == 0).expand_as(x0)
    assert torch.equal(outs[0][outside], x0[outside]) and not torch.allclose(outs[1][outside], x0[outside], atol=1e-3)


def test_dilation_adds_cells_and_a_lost_mask_is_an_error():
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 12, 12] = 1
    assert latent_mask(mask, (4, 4)).sum() == 2 and latent_mask(mask, (4, 4), dilate=1).sum() == 2 * 9
    thin = mask.clone()
    thin[1] = 0
    thin[1, :, :, 9] = 1
    with pytest.raises(UserError, match="8 x 8 pixels"):
        latent_mask(thin, (4, 4))
    assert latent_mask(torch.zeros(1, 1, 32, 32), (4, 4)).sum() == 0


@pytest.mark.parametrize("feather", [0, 3])
def test_pasting_keeps_every_bit_outside(feather):
    source, edited = random((2, 3, 32, 32), 1, torch.float32), random((2, 3, 32, 32), 2, torch.float32)
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    out = paste(source, edited, mask, feather)
    outside = (mask == 0).expand_as(out)
    assert torch.equal(out[outside], source[outside])
    assert torch.equal(out[..., 12:20, 12:20], edited[..., 12:20, 12:20])
    away = (out - source).abs() / (edited - source).abs()
    rim = away[..., 8, 14:18]
    assert (rim == 1).all() if not feather else ((rim > 0.05) & (rim < 0.5)).all()
    assert torch.equal(paste(source, edited, torch.ones_like(mask), feather), edited)
