from __future__ import annotations

import torch

from editkit.data.disturbances import mirrored
from editkit.data.items import collate
from editkit.data.pasted import PastedScenes
from editkit.methods.foundation.harmony import SeamReader
from editkit.metrics.harmony import load_harmony
from editkit.training.harmony_figures import harmony_figures


def test_it_learns_a_few_pictures_and_exports_what_it_trained(tmp_path):
    torch.manual_seed(0)
    method = SeamReader(widths=(8, 8, 16))
    data = PastedScenes("train", 12, 32)
    batch = collate([data[k] for k in range(12)])
    assert 0 < batch["rendered"].sum() < 12
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    costs = []
    for _ in range(40):
        cost = method.loss(batch)["seam"].mean()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert sum(costs[-5:]) < 0.6 * sum(costs[:5])
    method.export(tmp_path)
    ours, theirs = method.net.state_dict(), load_harmony(tmp_path).state_dict()
    assert all(torch.equal(theirs[name], ours[name].half().float()) for name in ours)


def test_a_mirrored_picture_takes_its_mask_along():
    torch.manual_seed(0)
    masks = torch.rand(16, 1, 4, 4)
    images, moved = mirrored(masks.expand(16, 3, 4, 4), masks)
    assert torch.equal(images[:, :1], moved) and 2 < (moved != masks).flatten(1).any(1).sum() < 14


def test_the_card_says_how_well_each_way_of_pasting_is_told():
    class Knowing:
        """It is told the pictures in the order in which they are measured: rendered ones, another object, then pasted."""

        def __init__(self):
            self.seen = 0

        def __call__(self, images, masks):
            assert len(images) == len(masks) == 3
            self.seen += 1
            return torch.full((3,), 5.0 if self.seen <= 2 else -5.0)

    figures = harmony_figures(Knowing(), images=3, size=32)
    assert figures["AUC squashed"] == figures["AUC feathered"] == figures["AUC by its mask"] == 1
    assert figures["AUC another object"] == 0.5 and figures["chance rendered"] > 0.99 > 0.01 > figures["chance squashed"]
