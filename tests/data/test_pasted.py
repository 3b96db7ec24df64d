from __future__ import annotations

import pytest
import torch

from editkit.data.box_exemplars import box_of
from editkit.data.items import image_tensor
from editkit.data.pasted import COMPOSITIONS, PastedScenes, bare, by_its_mask, composed, squashed
from editkit.data.scenes import mask_tensor
from editkit.data.toyworld.scenes.drawing import render
from editkit.data.toyworld.scenes.world import exemplar_at


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_what_is_pasted_stays_in_the_mask(name):
    for k in range(4):
        pair = exemplar_at("test", k)
        before, after = image_tensor(render(pair.source, 48)), composed(pair, name, 48, over=pair.source)
        mask = mask_tensor(pair.mask(48)[None])
        changed = (before != after).any(0, keepdim=True).float()
        assert (changed <= mask).all() and changed.sum() > 0.2 * mask.sum() and after.abs().max() <= 1


def test_an_object_is_pasted_alone_in_its_own_proportions_and_a_crop_with_its_background():
    image, mask, red = torch.zeros(3, 16, 16), torch.zeros(1, 16, 16), torch.full((3, 8, 8), -1.0)
    mask[:, 2:14, 4:12] = 1
    red[0, 2:6, 2:6] = 1
    shown = torch.zeros(1, 8, 8)
    shown[:, 2:6, 2:6] = 1
    alone, crop = by_its_mask(image, mask, red, shown), squashed(image, mask, red)
    assert box_of(alone[0] > 0.5) == (4, 4, 12, 12), "as wide as the mask, in the middle of its height"
    assert (alone[1:, 5:11, 5:11] < -0.99).all() and (alone[:, 2:4] == 0).all()
    assert (crop[1:, 2:14, 4:12] <= -0.9).all() and (crop[0, 2, 4:12] < 0).all()


def test_half_of_the_items_are_renderings_and_nothing_but_the_picture_says_which():
    torch.manual_seed(0)
    data = PastedScenes("train", 8, 32)
    items = [data[k % 8] for k in range(48)]
    assert 12 < sum(item["rendered"] for item in items) < 36
    for k in range(8):
        assert len({item["mask"].sum().item() for item in items[k::8]}) == 1
    pair = exemplar_at("train", 0)
    renders = [image_tensor(render(scene, 32)) for scene in (pair.target, pair.source, bare(pair))]
    for item in items[::8]:
        assert item["rendered"] == any(torch.equal(item["image"], one) for one in renders)
