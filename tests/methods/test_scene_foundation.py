"""The methods that make the bundled models of scenes: what they learn from, and that what they export is what was trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import editkit.training.scene_figures as figures_module
from editkit.data.items import collate
from editkit.data.scene_classes import NOTHING, OF_THINGS, OF_WHOLES, UNSEEN, cell_classes, whole_classes
from editkit.data.scene_views import VariedScenes
from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.factors import Scene, Thing
from editkit.data.toyworld.scenes.world import scene_at
from editkit.methods.foundation.scene_oracle import SceneReader, mirrored
from editkit.metrics.scene_oracle import SceneOracle, load_scene_oracle
from editkit.training.scene_figures import accuracy

STAR, CUP = Thing("star", "red"), Thing("cup", "blue", "dotted")


def test_cells_are_classes_of_the_object_in_their_middle():
    instances = torch.zeros(2, 64, 64, dtype=torch.long)
    instances[0, 8:16, 8:16], instances[0, 40:48, 8:16] = 1, 2
    instances[1, 8:16, 8:16] = 1
    classes = cell_classes([Scene((STAR, CUP)), Scene((CUP,))], instances, 16)
    star, cup = ({name: OF_THINGS[name].index(getattr(thing, name)) for name in OF_THINGS} for thing in (STAR, CUP))
    for name, values in classes.items():
        assert (values[0, 2:4, 2:4] == star[name]).all() and (values[0, 10:12, 2:4] == cup[name]).all()
        assert (values[1, 2:4, 2:4] == cup[name]).all()
        assert values[0, 0, 0] == (NOTHING if name == "shape" else UNSEEN)
        assert (values[0] != values[0, 0, 0]).sum() == 8


def test_what_a_picture_does_not_show_is_not_taught():
    scenes = [Scene((STAR,), "beach", season="winter"), Scene((STAR, CUP), "room"), Scene((STAR,), "beach", style="neon")]
    classes = whole_classes(scenes)
    assert classes["season"].tolist() == [OF_WHOLES["season"].index("winter"), UNSEEN, UNSEEN]
    assert classes["time"][2] == UNSEEN and classes["style"][2] == OF_WHOLES["style"].index("neon")
    assert classes["count"].tolist() == [1, 2, 1]


def test_a_mirrored_picture_takes_its_objects_along():
    torch.manual_seed(0)
    instances = torch.randint(0, 3, (16, 8, 8))
    images = instances[:, None].expand(16, 3, 8, 8).float()
    flipped, moved = mirrored(images, instances)
    assert torch.equal(flipped[:, 0].long(), moved)
    assert 2 < (moved != instances).any(2).any(1).sum() < 14


def test_the_oracle_learns_a_few_scenes():
    torch.manual_seed(1)
    method = SceneReader()
    data = VariedScenes("train", 4)
    batch = collate([data[k] for k in range(4)])
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = sum(method.loss(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]


class Knowing(SceneOracle):
    """An oracle that is told the scenes whose pictures it is shown."""

    def __init__(self, scenes):
        super().__init__(OF_WHOLES, OF_THINGS, widths=(8, 8, 8), features=8)
        self.scenes = scenes

    def logits(self, images):
        instances = torch.from_numpy(np.stack([picture(scene).instances for scene in self.scenes]).astype(np.int64))
        cells = cell_classes(self.scenes, instances, 16)
        sizes = {name: len(values) + (name == "shape") for name, values in OF_THINGS.items()}
        votes = {name: F.one_hot(cells[name].clamp_min(0), sizes[name]).movedim(3, 1) * 20.0 for name in sizes}
        whole = whole_classes(self.scenes)
        return {name: F.one_hot(whole[name].clamp_min(0), len(OF_WHOLES[name])) * 20.0 for name in whole}, votes


def test_a_perfect_oracle_has_perfect_figures_and_masks_of_other_objects_spoil_them(monkeypatch):
    scenes = [scene_at("test", k) for k in range(12)]
    figures = accuracy(Knowing(scenes), scenes)
    assert figures == dict.fromkeys(["colour", "count", "place", "presence", "season", "shape", "style", "texture", "time"], 1.0)
    right = figures_module.object_masks
    monkeypatch.setattr(figures_module, "object_masks", lambda drawn: right(drawn).roll(1, 0))
    wrong = accuracy(Knowing(scenes), scenes)
    assert wrong["shape"] < 0.5 and wrong["presence"] < 0.9 and wrong["place"] == 1


def test_reconstructions_are_a_third_of_what_the_oracle_sees(tmp_path, monkeypatch):
    from diffusers import AutoencoderKL

    layers = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**layers, **blocks).save_pretrained(tmp_path / "vae")
    method = SceneReader(reconstruct_with=str(tmp_path))
    assert not any(name.startswith("autoencoder") for name in method.trained_state())
    shown = []
    monkeypatch.setattr("editkit.methods.foundation.scene_oracle.spoiled", lambda images: shown.append(images) or images)
    monkeypatch.setattr("editkit.methods.foundation.scene_oracle.mirrored", lambda *pair: pair)
    batch = method.dummy_batch()
    method.loss(batch)
    assert [torch.equal(*pair) for pair in zip(shown[0], batch["image"], strict=True)] == [False, True, True, False]


def test_the_oracle_exports_what_it_trained_and_goes_on_from_it(tmp_path):
    method = SceneReader()
    method.export(tmp_path)
    again = SceneReader(init_from=str(tmp_path))
    ours, theirs, loaded = (part.state_dict() for part in (method.oracle, again.oracle, load_scene_oracle(tmp_path)))
    assert all(torch.equal(theirs[name], ours[name].half().float()) and torch.equal(theirs[name], loaded[name]) for name in ours)
    again.freeze_rest()
    assert all(parameter.requires_grad for parameter in again.oracle.parameters())


@pytest.mark.parametrize("index", [0, 5])
def test_varied_scenes_show_what_they_say(index):
    from editkit.data.items import image_array
    from editkit.data.toyworld.scenes.drawing import render

    torch.manual_seed(index)
    items = [VariedScenes("test", 8)[index] for _ in range(8)]
    assert all((image_array(item["image"]) == render(item["scene"])).all() for item in items)
    assert len({item["scene"] for item in items}) > 2 and len({item["scene"].style for item in items}) > 1
    assert all(item["instances"].max() == len(item["scene"].things) for item in items)
