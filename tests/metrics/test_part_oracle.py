"""The part oracle: parts of its own size, and an overlap that counts pixels."""

from __future__ import annotations

import pytest
import torch

from editkit.data.toyworld.faces import PARTS
from editkit.errors import UserError
from editkit.metrics.part_oracle import PartOracle, load_part_oracle, overlap


def test_it_is_small_names_every_pixel_and_survives_its_folder(tmp_path):
    torch.manual_seed(0)
    oracle = PartOracle(PARTS).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert sum(p.numel() for p in oracle.parameters()) < 300_000
    assert oracle(images).shape == (2, len(PARTS), 64, 64) and oracle.read(images).shape == (2, 64, 64)
    oracle.save(tmp_path)
    again = load_part_oracle(tmp_path)
    assert again.parts == PARTS and (again(images) - oracle(images)).abs().max() < 1e-2, "half precision on disk"
    (tmp_path / "config.json").write_text('{"kind": "oracle"}')
    with pytest.raises(UserError, match="holds no part oracle"):
        load_part_oracle(tmp_path)


def test_overlap_counts_pixels_of_all_parts_together_whichever_they_are():
    wanted = torch.zeros(3, 4, 4, dtype=torch.long)
    wanted[0, 0], wanted[1, 0], wanted[1, 1] = 6, 6, 3
    found = wanted.clone()
    found[0, 0, :2] = 0
    found[1] = torch.where(wanted[1] == 3, 6, torch.where(wanted[1] == 6, 3, 0))
    assert overlap(found, wanted, [6])[:2].tolist() == [0.5, 0.0]
    assert overlap(found, wanted, [3, 6])[:2].tolist() == [0.5, 1.0]
    assert overlap(found, wanted, [6])[2].isnan(), "a part that neither map has"
    more = wanted.clone()
    more[0, 1] = 6
    assert overlap(more, wanted, [6])[0] == 0.5, "too much is as wrong as too little"
