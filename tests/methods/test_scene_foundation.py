"""The methods that make the bundled models of scenes: what they learn from, and that what they export is what was trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPTextModel, CLIPVisionModel

import editkit.training.scene_figures as figures_module
from editkit.backbones.clip import load_clip
from editkit.backbones.dino import load_dino
from editkit.data.disturbances import mirrored
from editkit.data.items import collate
from editkit.data.scene_classes import NOTHING, OF_THINGS, OF_WHOLES, UNSEEN, cell_classes, whole_classes
from editkit.data.scene_views import ThingViews, VariedScenes, carried_over
from editkit.data.toyworld.scenes.captions import full_caption
from editkit.data.toyworld.scenes.drawing import picture
from editkit.data.toyworld.scenes.factors import Scene, Thing
from editkit.data.toyworld.scenes.words import AT_PLACE, AT_TIME, COLOUR_WORDS, IN_SEASON, SETTINGS, SHAPE_WORDS, TEXTURE_WORDS
from editkit.data.toyworld.scenes.world import scene_at
from editkit.data.world_pairs import WorldPairs
from editkit.errors import UserError
from editkit.methods.foundation.clip.scenes import SceneClip, matched, speaks_of_scenes, truth
from editkit.methods.foundation.dino import ToyDino, centres, dino_figures, matched_patches, partners
from editkit.methods.foundation.scene_oracle import SceneReader, exchanged
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
    monkeypatch.setattr("editkit.methods.foundation.scene_oracle.ODD", 0.0)
    batch = method.dummy_batch()
    method.loss(batch)
    assert [torch.equal(*pair) for pair in zip(shown[0], batch["image"], strict=True)] == [False, True, True, False]


def test_pictures_with_exchanged_channels_teach_shapes_and_textures_alone(monkeypatch):
    monkeypatch.setattr("editkit.methods.foundation.scene_oracle.ODD", 1.0)
    shown = torch.rand(8, 3, 4, 4)
    changed, odd = exchanged(shown)
    assert odd.all() and torch.equal(changed.sort(1).values, shown.sort(1).values)
    method = SceneReader()
    losses = method.loss(method.dummy_batch())
    assert losses["whole"] == 0 and losses["colour"] == 0 and losses["shape"] > 0 and losses["texture"] > 0


def test_the_oracle_exports_what_it_trained_and_goes_on_from_it(tmp_path):
    method = SceneReader()
    method.export(tmp_path)
    again = SceneReader(init_from=str(tmp_path))
    ours, theirs, loaded = (part.state_dict() for part in (method.oracle, again.oracle, load_scene_oracle(tmp_path)))
    assert all(torch.equal(theirs[name], ours[name].half().float()) and torch.equal(theirs[name], loaded[name]) for name in ours)
    again.freeze_rest()
    assert all(parameter.requires_grad for parameter in again.oracle.parameters())


TERMS = {"factors": 1.0, "cells": 1.0, "contrast": 1.0, "direction": 1.0, "instruction": 1.0}


@pytest.fixture(scope="module")
def clip() -> SceneClip:
    torch.manual_seed(0)
    return SceneClip(width=32, layers=2, text_width=32, text_layers=1, dim=16, terms=TERMS)


def falling(method, batch, steps: int, lr: float = 3e-3) -> tuple[dict[str, float], dict[str, float]]:
    """Train on one batch; return the first and the last losses."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=lr)
    seen = []
    for _ in range(steps):
        losses = method.loss(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        seen.append({name: value.item() for name, value in losses.items()})
    return seen[0], seen[-1]


def test_a_caption_of_one_domain_is_false_of_the_other_and_true_by_its_claims(clip):
    batch = clip.dummy_batch()
    shown = [pair[0] for pair in batch["shown"]]
    captions = [pair[0] for pair in batch["told"]]
    true, clear = truth(captions, shown, [pair[0] for pair in batch["hidden"]])
    assert true.diagonal().all() and clear[0, 0] and not clear[3, 3], "the last one is a crop, and its caption names the place"
    assert not true[0, 1:].any() and not true[1:, 0].any(), "the first pair is a face, the others are scenes"
    assert [speaks_of_scenes(caption) for caption in captions] == [False, True, True, True]


def test_changes_must_go_the_way_of_their_own_texts():
    ways, names = torch.eye(3, 8), ["make it night", "make it night", "add a star"]
    assert matched(ways, ways, names) < 0.01 < matched(ways.roll(1, 0), ways, names)
    alike_ways = torch.stack([ways[0], ways[0], ways[2]])
    assert matched(alike_ways, alike_ways, names) < 0.01 < matched(alike_ways, alike_ways, ["a", "b", "c"])


def test_the_clip_of_scenes_learns_a_batch(clip):
    first, last = falling(copy.deepcopy(clip), clip.dummy_batch(), 25)
    assert all(last[name] < 0.9 * first[name] for name in ("factors", "cells", "contrast", "direction")), (first, last)


def test_the_pooled_token_is_asked_what_a_single_object_is_unless_its_style_hides_that(clip):
    star, cup = Thing("star", "red"), Thing("cup", "blue")
    pooled = torch.zeros(3, clip.thing_head.in_features, requires_grad=True)
    shown = [Scene((star,)), Scene((star,), style="pencil"), Scene((star, cup))]
    clip._things(pooled, shown, [frozenset(), frozenset({"shape", "colour", "texture"}), frozenset()]).backward()
    assert [bool(row.any()) for row in pooled.grad] == [True, False, False]
    with torch.no_grad():
        clip.thing_head.bias[list(OF_THINGS["shape"]).index("star")] += 20
        right, wrong = (clip._things(pooled, [Scene((one,))], [frozenset()]) for one in (star, cup))
    assert right + 5 < wrong


@pytest.mark.parametrize("face", [True, False])
def test_a_batch_of_one_domain_has_finite_losses(clip, face):
    pairs, rng = WorldPairs("train", 4), np.random.default_rng(0)
    made = [pairs.face_pair(k, rng) if face else pairs.scene_pair(k, rng, crop=False) for k in range(2)]
    losses = clip.loss(collate(made))
    assert all(torch.isfinite(value) for value in losses.values())
    assert (losses["cells"] == 0) == (losses["instruction"] == 0) == face


def test_the_towers_of_the_clip_load_alone(clip, tmp_path):
    clip.export(tmp_path)
    loaded = load_clip(tmp_path)
    texts, images = ["a striped red star on a beach", "make the cup blue"], torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded.text(texts), clip._read(texts), atol=0.02, rtol=0.02)
        torch.testing.assert_close(loaded.image(images), clip._see(images)[2], atol=0.02, rtol=0.02)
        tokens = loaded.tokenizer(texts, padding=True, return_tensors="pt")
        states = CLIPTextModel.from_pretrained(tmp_path, dtype=torch.float32)(**tokens).last_hidden_state
        seen = CLIPVisionModel.from_pretrained(tmp_path, dtype=torch.float32)(images).last_hidden_state
    assert states.shape == (2, tokens["input_ids"].shape[1], 32) and seen.shape == (2, 65, 32)
    torch.testing.assert_close(states, loaded.model.text_model(**tokens).last_hidden_state, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)


def test_every_word_of_the_world_is_one_token_and_the_longest_prompt_fits(clip):
    tables = (SHAPE_WORDS, COLOUR_WORDS, TEXTURE_WORDS, AT_PLACE, AT_TIME)
    phrases = " ".join(words for table in tables for many in table.values() for words in many)
    for word in {*phrases.replace("-", " ").split(), "remove", "make", "smiling", "glasses"}:
        assert clip.tokenizer.tokenize(word) == [f"{word}</w>"]
    things = tuple(Thing("mushroom", colour, "dotted") for colour in ("red", "orange", "yellow", "green"))
    longest = full_caption(Scene(things, "mountains", "night", "winter", "pencil")).text
    assert len(clip.tokenizer(longest).input_ids) <= clip.max_length


def dino() -> ToyDino:
    torch.manual_seed(0)
    return ToyDino(width=32, layers=2, terms={"whole": 1.0, "patches": 1.0})


def test_patches_are_compared_where_both_views_show_the_same_point():
    side, count = 8, 3
    masks, frames = torch.zeros(count, 2, 64, 64), torch.tensor([[0.0, 1.0, 0.0, 0.0]] * 2).expand(count, 2, 4).clone()
    masks[:, :, 16:48, 16:48] = 1
    masks[2, 1] = 0  # hidden in the second view
    frames[1, 1, 0] = torch.pi / 2
    places = centres(side, masks).expand(count, -1, -1)
    here, there, owners = partners(places, places, masks, frames)
    assert owners.tolist() == [0] * 16 + [1] * 16
    torch.testing.assert_close(there[:16], here[:16])
    turned = torch.stack([-here[16:, 1], here[16:, 0]], dim=1)
    torch.testing.assert_close(there[16:], turned, atol=1e-5, rtol=0)


def test_the_transformer_learns_a_batch():
    method = dino()
    first, last = falling(method, method.dummy_batch(), 20)
    assert last["whole"] < 0.7 * first["whole"] and last["patches"] < 0.9 * first["patches"]


def test_objects_of_one_kind_are_no_negatives_and_swapped_views_cost(monkeypatch):
    method = dino()
    batch = method.dummy_batch()
    seen = []
    monkeypatch.setattr("editkit.methods.foundation.dino.info_nce", lambda a, b, twins: seen.append(twins) or a.mean() + b.mean())
    method.loss({**batch, "caption": ["a red star", "a red star", "a cup", "a ring"]})
    whole, patches = seen
    assert whole[0, 1] and not whole[0, 2]
    assert patches.any() and not patches.diagonal().any(), "patches of the same object are negatives, those of its twins are not"


def test_patches_that_say_where_they_are_match_perfectly():
    torch.manual_seed(0)
    batch = collate([ThingViews("test", 6)[k] for k in range(6)])
    angles = torch.arange(1, 5) * 1.5
    code = lambda points: torch.cat([f(points * k) for k in angles for f in (torch.sin, torch.cos)], dim=2)  # noqa: E731
    there = torch.cat([torch.zeros(6, 1, 16), code(centres(8, batch["image"]).expand(6, -1, -1))], dim=1)
    carried = carried_over(centres(8, batch["image"]).expand(6, -1, -1), batch["frames"])
    here = torch.cat([torch.zeros(6, 1, 16), code(carried)], dim=1)
    assert matched_patches(here, there, batch) == 1
    assert matched_patches(here.flip(1), there, batch) < 0.6


def test_the_transformer_comes_back_from_its_folder(tmp_path):
    method = dino().eval()
    method.export(tmp_path)
    loaded, images = load_dino(tmp_path), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), method.dino(images).last_hidden_state, atol=0.03, rtol=0.03)
    assert loaded(images).shape == (2, 65, 32) and loaded.dim == 32
    assert 0 <= dino_figures(loaded, ThingViews("test", 8))["same kind nearest"] <= 1
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not hold a Dinov2Model"):
        load_dino(tmp_path)


def test_the_figures_of_a_clip_know_a_perfect_one():
    class Perfect:
        """Its embeddings are one-hot: a text has the number of the first picture that it is said of."""

        def image(self, images):
            return torch.eye(24)[: len(images)]

        def text(self, texts):
            scenes = [scene_at("test", k) for k in range(24)]
            full = [full_caption(scene).text for scene in scenes]
            if set(texts) <= set(full):
                return torch.eye(24)[[full.index(text) for text in texts]]
            return torch.stack([torch.tensor([float(said_of(text, scene)) for scene in scenes]) for text in texts])

    def said_of(text, scene):
        words = {"place": SETTINGS[scene.place][0], "time": AT_TIME[scene.time][0], "season": IN_SEASON[scene.season][0]}
        thing = scene.things[0]
        ends = (words["time"], words["season"], f"{COLOUR_WORDS[thing.colour][0]} object", f" {SHAPE_WORDS[thing.shape][0]}")
        return text == words["place"] or text.endswith(ends)

    figures = figures_module.clip_scene_figures(Perfect(), images=24)
    assert set(figures.values()) == {1.0} and len(figures) == 6


def test_the_figures_of_an_untrained_oracle_cover_every_set():
    oracle = SceneOracle(OF_WHOLES, OF_THINGS, widths=(8, 8, 8), features=8).eval()
    figures = figures_module.oracle_figures(oracle, lambda images: images, images=8)
    sets = {"clean", "heldout", "pencil", "poster", "mosaic", "neon", "compressed", "reconstructed"}
    assert {name.split()[0] for name in figures} == sets | {"found"}
    assert "colour" not in figures["pencil accuracy"] and figures["clean accuracy"] == figures["reconstructed accuracy"]
