from __future__ import annotations

import pytest
import torch

from editkit.losses.contrast import alike, info_nce


def test_partners_must_be_nearest_in_both_directions():
    rows = torch.eye(3, 8)
    none = torch.zeros(3, 3, dtype=torch.bool)
    assert info_nce(rows, rows * 5, none) < 0.01 < info_nce(rows, rows.roll(1, 0), none)
    crowded = torch.stack([rows[0], rows[0], rows[2]])
    one_way, other_way = info_nce(rows, crowded, none), info_nce(crowded, rows, none)
    assert one_way == pytest.approx(other_way.item()) and one_way > 0.5


def test_what_is_left_out_is_no_negative_and_the_partner_stays():
    rows = torch.eye(3, 8)
    double = torch.stack([rows[0], rows[0], rows[2]])
    same = alike(["a", "a", "b"])
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert info_nce(double, double, same) < 0.01 < info_nce(double, double, torch.zeros_like(same))


def test_a_batch_without_pairs_costs_nothing_and_has_a_gradient():
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = info_nce(empty, empty, alike([]))
    loss.backward()
    assert loss == 0 and empty.grad is not None
