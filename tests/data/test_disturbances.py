from __future__ import annotations

import torch

from editkit.data.disturbances import compressed, disturbed
from editkit.data.faces import FaceDataset


def test_rounding_of_blocks_keeps_the_picture_and_loses_more_in_coarser_steps():
    image = torch.stack([FaceDataset("train", 2, 32)[k]["image"] for k in range(2)])
    errors = [(compressed(image, torch.full((2,), step)) - image).square().mean().item() for step in (1e-4, 0.05, 0.3)]
    assert errors[0] < 1e-6 < errors[1] < errors[2] < 0.05


def test_steps_grow_with_the_frequency_and_follow_each_picture_alone():
    waves = torch.cos(torch.pi * (2 * torch.arange(8) + 1) * torch.tensor([[1.0], [7.0]]) / 16) * 0.12
    images = waves[:, None, None].expand(2, 3, 8, 8)
    low, high = compressed(images, torch.full((2,), 0.35)).abs().amax((1, 2, 3))
    assert low > 0.05 and high == 0
    assert torch.equal(compressed(images, torch.tensor([0.25, 0.01]))[0], compressed(images[:1], torch.tensor([0.25]))[0])


def test_disturbed_pictures_stay_pictures():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 8, 8) * 2 - 1
    changed = disturbed(images)
    assert changed.abs().max() <= 1 and 0.001 < (changed - images).abs().mean() < 0.2
