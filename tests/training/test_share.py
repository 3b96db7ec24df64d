"""What is computed once of every training image, on one process and on several."""

from __future__ import annotations

import pytest
import torch

from editkit.training.share import BATCH, computed_once, looked_up
from tests.methods.asyrp_parts import Images


def figures(images, keys):
    return {"mean": images.mean((1, 2, 3)), "number": torch.tensor([[int(key.removeprefix("image/"))] for key in keys])}


@pytest.fixture(scope="module")
def images():
    return Images(BATCH + 3)


def test_every_image_has_its_own_row(images):
    rows = computed_once(images, figures)
    assert rows.keys() == {f"image/{k}" for k in range(BATCH + 3)}
    for k in (0, BATCH - 1, BATCH, BATCH + 2):
        assert rows[f"image/{k}"]["number"].tolist() == [k]
        torch.testing.assert_close(rows[f"image/{k}"]["mean"], images.images[k].mean())


def test_each_process_computes_its_share_and_gets_that_of_the_others(images, monkeypatch):
    whole, seen = computed_once(images, figures), []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def gather(shares, own):
        shares[0], shares[1] = {key: row for key, row in whole.items() if key not in own}, own

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    rows = computed_once(images, lambda images, keys: seen.extend(keys) or figures(images, keys))
    assert seen == [f"image/{k}" for k in range(1, BATCH + 3, 2)]
    assert rows.keys() == whole.keys()
    assert all(torch.equal(rows[key]["number"], whole[key]["number"]) for key in whole)


def test_rows_are_looked_up_in_the_order_of_the_keys_or_not_at_all(images):
    rows = computed_once(images, figures)
    found = looked_up(rows, ["image/2", "image/17"], torch.device("cpu"))
    assert found["number"].tolist() == [[2], [17]] and found["mean"].shape == (2,)
    assert looked_up(rows, ["image/2", "image/99"], torch.device("cpu")) is None
