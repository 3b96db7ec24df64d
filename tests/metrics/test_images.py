from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from editkit.metrics.images import PSNR_CAP, differing, eight_bit, mean, perceptual, psnr, ssim


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = eight_bit(torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1)
    return truth, eight_bit(truth + 0.2 * torch.randn(2, 3, 32, 32, generator=generator))


def test_an_equal_pair_is_capped_and_alike(pair):
    truth, _ = pair
    assert psnr(truth, truth).tolist() == [PSNR_CAP, PSNR_CAP]
    assert ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0])


def test_psnr_of_a_known_error():
    flat = torch.zeros(1, 3, 8, 8)
    assert psnr(flat + 0.2, flat).item() == pytest.approx(20.0, abs=1e-4)  # 0.2 of 2 is a tenth of full scale


def test_ssim_is_the_usual_one(pair):
    truth, noisy = pair
    settings = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0, "return_full_image": True}
    _, expected = structural_similarity_index_measure((noisy + 1) / 2, (truth + 1) / 2, **settings)
    assert ssim(noisy, truth).tolist() == pytest.approx(expected.mean((1, 2, 3)).tolist(), abs=1e-5)


def test_a_region_is_averaged_over_itself_alone(pair):
    truth, _ = pair
    region = torch.zeros(2, 1, 32, 32)
    region[:, :, :8, :8] = 1
    spoiled = torch.where(region > 0, (truth + 0.2), truth)
    assert psnr(spoiled, truth, region).tolist() == pytest.approx([20.0, 20.0], abs=1e-3)
    assert psnr(spoiled, truth, 1 - region).tolist() == [PSNR_CAP, PSNR_CAP]
    assert psnr(spoiled, truth)[0] > 30, "the whole frame dilutes the error"


def test_an_empty_region_is_undefined_left_out_and_counted(pair):
    truth, noisy = pair
    region = torch.ones(2, 1, 32, 32)
    region[1] = 0
    for values in (psnr(noisy, truth, region), ssim(noisy, truth, region), perceptual(_l1, noisy, truth, region)):
        found = mean(values)
        assert math.isnan(values[1]) and (found.count, found.excluded) == (1, 1)
        assert found.value == pytest.approx(values[0].item())


def test_perceptual_distance_sees_its_region_only(pair):
    truth, noisy = pair
    region = torch.zeros(2, 1, 32, 32)
    region[:, :, :8] = 1
    outside_only = torch.where(region > 0, truth, noisy)
    assert perceptual(_l1, outside_only, truth, region).tolist() == [0.0, 0.0]
    assert (perceptual(_l1, outside_only, truth, 1 - region) > 0).all()


def test_the_region_is_every_pixel_that_differs_by_one_level(pair):
    truth, _ = pair
    other = truth.clone()
    other[0, 1, 3, 4] += 1 / 127.5
    assert differing(other, truth).nonzero().tolist() == [[0, 0, 3, 4]]


def test_eight_bit_rounds_and_clamps():
    assert eight_bit(torch.tensor([-3.0, -1.0, 1.0, 1.5])).tolist() == [-1, -1, 1, 1]
    assert (eight_bit(torch.linspace(-1, 1, 997)).unique().numel()) == 256


def _l1(a, b):
    return (a - b).abs().mean((1, 2, 3))
