from __future__ import annotations

import pytest
import torch

from editkit.errors import UserError
from editkit.metrics.harmony import HarmonyNet, load_harmony, outranked


def test_the_mean_of_the_shares_is_the_area_under_the_curve():
    real, made = torch.tensor([0.9, 0.8, 0.4, 0.4]), torch.tensor([0.1, 0.4, 0.85])
    pairs = [(r > m) + 0.5 * (r == m) for r in real.tolist() for m in made.tolist()]
    assert outranked(made, real).mean().item() == pytest.approx(sum(pairs) / len(pairs))
    assert outranked(real, real).mean() == 0.5 and outranked(real - 1, real).mean() == 1


def test_it_sees_the_mask_and_comes_back_from_its_folder(tmp_path):
    torch.manual_seed(0)
    net = HarmonyNet((8, 8, 8)).eval()
    images, masks = torch.rand(2, 3, 64, 64) * 2 - 1, torch.zeros(2, 1, 64, 64)
    masks[:, :, 20:40, 20:40] = 1
    net.save(tmp_path)
    loaded = load_harmony(tmp_path)
    torch.testing.assert_close(loaded(images, masks), net(images, masks), atol=0.01, rtol=0.01)
    assert not torch.allclose(loaded(images, masks), loaded(images, masks.roll(20, 3)), atol=1e-4)
    assert loaded(torch.rand(1, 3, 96, 96), torch.ones(1, 1, 96, 96)).shape == (1,)
    assert sum(p.numel() for p in HarmonyNet().parameters()) * 2 < 1_000_000, "bundled in half precision, below 1 MB"


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no harmony"):
        load_harmony(tmp_path)
