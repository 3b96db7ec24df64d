"""Objects in two views and pairs of the whole world: what they say of their pictures is so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from editkit.data.items import collate, image_array
from editkit.data.scene_views import ThingViews, VariedScenes, carried_over
from editkit.data.toyworld.faces import Face
from editkit.data.toyworld.scenes.captions import Caption, full_caption, holds, holds_matrix, unclear_pairs
from editkit.data.toyworld.scenes.drawing import render
from editkit.data.toyworld.scenes.factors import HIDDEN, Scene, Thing
from editkit.data.toyworld.scenes.world import caption_at, scene_at
from editkit.data.world_pairs import WorldPairs


@pytest.mark.parametrize("index", [0, 5])
def test_varied_scenes_show_what_they_say(index):
    torch.manual_seed(index)
    items = [VariedScenes("test", 8)[index] for _ in range(8)]
    assert all((image_array(item["image"]) == render(item["scene"])).all() for item in items)
    assert len({item["scene"] for item in items}) > 2 and len({item["scene"].style for item in items}) > 1
    assert all(item["instances"].max() == len(item["scene"].things) for item in items)


def test_points_are_carried_to_where_the_other_view_shows_them():
    torch.manual_seed(0)
    batch = collate([ThingViews("train", 12)[k] for k in range(12)])
    line = (torch.arange(64) + 0.5) / 32 - 1
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=2).view(1, -1, 2).expand(12, -1, -1)
    there = carried_over(points, batch["frames"])
    sampled = torch.nn.functional.grid_sample(batch["object_masks"][:, 1:], there[:, :, None], align_corners=False)
    overlap = lambda one, other: ((one * other).sum((1, 2)) / torch.maximum(one, other).sum((1, 2))).median()  # noqa: E731
    carried = sampled[..., 0].view(12, 64, 64)
    assert overlap(carried, batch["object_masks"][:, 0]) > 0.85
    assert overlap(carried.roll(1, 0), batch["object_masks"][:, 0]) < 0.75


def test_a_turned_object_turns_its_points():
    frames = torch.tensor([[[0.0, 1.0, 0.0, 0.0], [math.pi / 2, 2.0, 0.5, 0.0]]])
    there = carried_over(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), frames)
    torch.testing.assert_close(there, torch.tensor([[[-0.25, 0.5], [-0.75, 0.0]]]), atol=1e-6, rtol=0)


def test_the_matrix_of_truth_is_that_of_the_single_answers():
    scenes = [scene_at("train", k) for k in range(12)]
    captions = [caption_at("train", k) for k in range(40)] + [full_caption(scene) for scene in scenes[:4]]
    expected = np.array([[holds(caption, scene) for scene in scenes] for caption in captions])
    assert (holds_matrix(captions, scenes) == expected).all()
    assert expected.any(0).all() and not expected.all()


def test_only_what_a_picture_hides_makes_a_pair_unclear():
    star, cup = Thing("star", "red"), Thing("cup", "blue")
    plain, pencil = Scene((star, cup)), Scene((star, cup), style="pencil")
    texts = [
        Caption("a red star", {"things": ({"shape": "star", "colour": "red"},)}),
        Caption("a blue star", {"things": ({"shape": "star", "colour": "blue"},)}),
        Caption("a blue ring", {"things": ({"shape": "ring", "colour": "blue"},)}),
    ]
    unsure = unclear_pairs(texts, [plain, pencil], [frozenset(), HIDDEN["pencil"]])
    assert unsure.tolist() == [[False, True], [False, True], [False, False]]


@pytest.mark.parametrize("kind", ["face", "scene", "crop"])
def test_pairs_differ_by_one_change_and_their_captions_are_true(kind):
    pairs = WorldPairs("train", 20)
    rng = np.random.default_rng(0)
    for k in range(6):
        item = pairs.face_pair(k, rng) if kind == "face" else pairs.scene_pair(k, rng, crop=kind == "crop")
        before, after = item["shown"]
        assert before != after and not torch.equal(item["image"], item["other"])
        assert isinstance(before, Face) == (kind == "face") == (item["instruction"] == "")
        if kind == "face":
            continue
        assert holds(item["captions"][0], before) and holds(item["captions"][1], after)
        assert holds(item["told"][0], before) and holds(item["told"][1], after)
        assert item["instances"].amax((1, 2)).tolist() == [len(before.things), len(after.things)]
        if kind == "scene":
            assert (image_array(item["other"]) == render(after)).all()
            assert not item["hidden"][0] or before.style in HIDDEN
        else:
            assert len(before.things) == 1 and {"place", "side"} <= item["hidden"][0]
            assert (item["instances"] > 0).float().mean() > 0.15  # the object fills the picture


def test_the_shares_of_the_domains_are_as_asked():
    for faces, crops in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        items = [WorldPairs("train", 4, 16, faces=faces, crops=crops)[k] for k in range(3)]
        assert all(isinstance(item["shown"][0], Face) == bool(faces) for item in items)
        assert all(("place" in item["hidden"][0]) == bool(crops) for item in items)
