"""The oracle of scenes: whose votes count, what it finds, and that it comes back from its folder."""

from __future__ import annotations

import pytest
import torch

from editkit.errors import UsageError, UserError
from editkit.metrics.scene_oracle import CELLS, SceneOracle, load_scene_oracle

WHOLE = {"place": ("beach", "room"), "time": ("day", "night")}
THINGS = {"shape": ("star", "cup"), "colour": ("red", "blue", "green"), "texture": ("plain", "dotted")}


class Told(SceneOracle):
    """An oracle whose cells are told what they see: a red dotted star on the left, a plain blue cup on the right."""

    def __init__(self):
        super().__init__(WHOLE, THINGS, widths=(8, 8, 8), features=8)

    def logits(self, images):
        cells = {
            name: torch.full((1, count, CELLS, CELLS), -9.0) for name, count in (("shape", 3), ("colour", 3), ("texture", 2))
        }
        star, cup = (slice(4, 12), slice(1, 6)), (slice(4, 12), slice(10, 15))
        cells["shape"][:, 2] = 0.0
        for place, classes in ((star, (0, 0, 1)), (cup, (1, 1, 0))):
            cells["shape"][(0, 2, *place)] = -9.0
            for name, number in zip(THINGS, classes, strict=True):
                cells[name][(0, number, *place)] = 9.0
        return {"place": torch.tensor([[0.0, 5.0]]), "time": torch.tensor([[2.0, 0.0]])}, cells


def region(rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(64, 64)
    mask[rows, columns] = 1
    return mask


IMAGE = torch.zeros(1, 3, 64, 64)
STAR, CUP = region(slice(16, 48), slice(4, 24)), region(slice(16, 48), slice(40, 60))
SKY, EMPTY = region(slice(0, 12), slice(0, 64)), torch.zeros(64, 64)


def test_what_stands_in_a_region_is_read_from_its_own_cells():
    objects = Told().read_objects(IMAGE, torch.stack([STAR, CUP, SKY, EMPTY])[None])
    seen = {name: [part.values[k] for k in part.classes[0, :2]] for name, part in objects.aspects.items()}
    assert seen == {"shape": ["star", "cup"], "colour": ["red", "blue"], "texture": ["dotted", "plain"]}
    assert (objects.presence[0] > 0.5).tolist() == [True, True, False, False]
    assert all((part.confidence[0, :2] > 0.99).all() for part in objects.aspects.values())


def test_the_outline_of_a_region_gives_nothing_away():
    disc = ((torch.arange(64)[:, None] - 32) ** 2 + (torch.arange(64)[None] - 14) ** 2 < 64).float()
    objects = Told().read_objects(IMAGE, torch.stack([disc, STAR])[None])
    assert objects.aspects["shape"].classes[0].tolist() == [0, 0]
    torch.testing.assert_close(objects.aspects["shape"].confidence[0, 0], objects.aspects["shape"].confidence[0, 1])


def test_an_object_is_found_where_it_stands_and_not_in_another_colour():
    oracle = Told()
    both, shape, colour = oracle.find(IMAGE, "cup", "blue"), oracle.find(IMAGE, shape="cup"), oracle.find(IMAGE, colour="blue")
    for found in (both, shape, colour):
        assert found.confidence.item() > 0.99
        assert torch.equal(found.masks[0, 0], CUP)
    assert oracle.find(IMAGE, "cup", "red").confidence.item() < 0.01
    assert oracle.find(IMAGE, "cup", "red").masks.sum() == 0
    assert torch.equal(oracle.find(IMAGE).masks[0, 0], STAR + CUP)
    with pytest.raises(UsageError, match="no colour 'blu'.*blue"):
        oracle.find(IMAGE, colour="blu")


def test_whole_pictures_are_read_with_their_confidence():
    read = Told().read_scene(IMAGE)
    assert {name: part.values[part.classes[0]] for name, part in read.items()} == {"place": "room", "time": "day"}
    assert read["place"].confidence.item() == pytest.approx(torch.tensor(5.0).sigmoid().item())


@pytest.mark.parametrize("side", [64, 128])
def test_it_comes_back_from_its_folder_and_reads_other_sizes(tmp_path, side):
    torch.manual_seed(0)
    oracle = SceneOracle(WHOLE, THINGS, widths=(8, 16, 16), features=8).eval()
    oracle.save(tmp_path)
    loaded = load_scene_oracle(tmp_path)
    images = torch.rand(2, 3, side, side) * 2 - 1
    for ours, theirs in zip(oracle.logits(images), loaded.logits(images), strict=True):
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], atol=0.02, rtol=0.02)
    found = loaded.find(images)
    assert found.masks.shape == (2, 1, side, side) and (loaded.whole, loaded.things) == (WHOLE, THINGS)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no scene oracle"):
        load_scene_oracle(tmp_path)
    with pytest.raises(UserError, match="its kind is oracle"):
        load_scene_oracle("editkit:toy-oracle")
