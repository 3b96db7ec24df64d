"""Toy scenes: determinism, splits, masks, true captions, exact answers to edits, second views, data sets."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.app.check import check_data
from editkit.data.folder import Folder
from editkit.data.items import collate, image_array
from editkit.data.label_map import PALETTE
from editkit.data.layout import render as render_folder
from editkit.data.scene_pairs import SceneEdits, SceneEditsData, SceneExemplars, SceneExemplarsData
from editkit.data.scenes import SceneDataset, Scenes
from editkit.data.toyworld.captions import Caption
from editkit.data.toyworld.scenes.backdrops import SNOW, STUFF
from editkit.data.toyworld.scenes.captions import caption as draw_caption
from editkit.data.toyworld.scenes.captions import full_caption, holds, thing_caption
from editkit.data.toyworld.scenes.drawing import PARTS, Window, box, grown, picture, render
from editkit.data.toyworld.scenes.edits import KINDS, OF_OBJECTS, draw_edit, name_of
from editkit.data.toyworld.scenes.factors import (
    APART,
    COLOURS,
    HELD_OUT,
    PLACES,
    SEASONAL,
    SEASONS,
    STYLES,
    TEXTURES,
    TIMES,
    Scene,
    Thing,
    at_place,
    distinct,
    held_out,
    measured,
    ordered,
    visible,
)
from editkit.data.toyworld.scenes.shapes import SHAPES
from editkit.data.toyworld.scenes.words import COLOUR_WORDS, SHAPE_WORDS, TEXTURE_WORDS
from editkit.data.toyworld.scenes.world import (
    caption_at,
    dialog_at,
    edit_at,
    exemplar_at,
    sample_at,
    scene_at,
    second_view_at,
    thing_captions_at,
)
from editkit.data.toyworld.world import DOMAINS, SPLITS
from editkit.errors import UsageError

SCENES = [scene_at("test", index) for index in range(120)]
STAR, CUP = Thing("star", "red", "striped", x=0.25, size=0.15), Thing("cup", "blue", x=0.75, y=0.7, size=0.2)
PAIR = Scene((STAR, CUP), "beach", "night", "winter")


def differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other).max(axis=-1)


# -- factors and splits


def test_a_sample_is_a_function_of_split_and_index():
    first = sample_at("test", 7)
    scene_at.cache_clear()
    again = sample_at("test", 7)
    assert first.rendered_from == again.rendered_from and first.caption == again.caption and first.notes == again.notes
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, sample_at("test", 8).image)
    assert edit_at("test", 7) == edit_at("test", 7) and exemplar_at("test", 7) == exemplar_at("test", 7)


EXPECTED = [("striped", "yellow", "star"), ("dotted", "pink", "heart")]


def test_the_training_scenes_stay_those_that_models_saw():
    scene = scene_at("train", 0)
    assert [(thing.texture, thing.colour, thing.shape) for thing in scene.things] == EXPECTED


def test_splits_are_disjoint():
    seen = [{scene_at(split, index) for index in range(150)} for split in SPLITS]
    assert len(set().union(*seen)) == 150 * len(SPLITS)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_held_out_combinations_are_only_in_their_own_split(split):
    shown = {(thing.shape, thing.colour) for index in range(400) for thing in scene_at(split, index).things}
    assert not shown & HELD_OUT and len(shown) == len(SHAPES) * len(COLOURS) - len(HELD_OUT)


def test_the_split_of_held_out_combinations_shows_all_of_them():
    scenes = [scene_at("heldout", index) for index in range(60)]
    assert all(held_out(scene) for scene in scenes)
    assert {(thing.shape, thing.colour) for scene in scenes for thing in scene.things} >= HELD_OUT


def test_no_edit_and_no_exemplar_leads_to_a_held_out_combination():
    assert not any(held_out(edit_at("train", index, OF_OBJECTS).target) for index in range(150))
    assert not any(held_out(exemplar_at("train", index).source) for index in range(150))


def test_scenes_are_varied_and_sound():
    for scene in SCENES:
        assert 1 <= len(scene.things) <= 4 and distinct(scene.things) and scene.things == ordered(scene.things)
        for one, other in combinations(scene.things, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) >= APART * (one.size + other.size)
        assert scene.season == "summer" or scene.place in SEASONAL
        assert set(visible(scene)) == set(measured(scene)) and visible(scene)["season"] == (scene.place in SEASONAL)
    for name, values in (("place", PLACES), ("time", TIMES), ("season", SEASONS)):
        assert {getattr(scene, name) for scene in SCENES} == set(values)
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}
    assert {thing.texture for scene in SCENES for thing in scene.things} == set(TEXTURES)


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'validation'"):
        scene_at("validaton", 0)
    with pytest.raises(UsageError, match="Did you mean 'recolour'"):
        edit_at("train", 0, ["recolor"])
    with pytest.raises(UsageError, match="Did you mean 'test'"):
        SceneDataset("tets", 4)
    with pytest.raises(UsageError, match="got 0 of 64"):
        SceneDataset("test", 0)


# -- pictures


@pytest.mark.parametrize("size", [24, 64, 100])
def test_masks_partition_the_picture(size):
    for scene in SCENES[:12]:
        drawn = picture(scene, size)
        assert drawn.image.shape == (size, size, 3) and drawn.labels.shape == drawn.sketch.shape == (size, size)
        assert drawn.whole.shape == drawn.seen.shape == (len(scene.things), size, size)
        assert np.array_equal(drawn.seen.sum(axis=0), drawn.instances > 0), "no pixel belongs to two objects"
        assert not (drawn.seen & ~drawn.whole).any(), "what is seen is part of the whole"
        for thing, seen in zip(scene.things, drawn.seen, strict=True):
            assert seen.any() and (drawn.labels[seen] == PARTS.index(thing.shape)).all()
        assert (drawn.labels[drawn.instances == 0] < len(STUFF)).all()
        assert np.array_equal(drawn.image, render(scene, size))


def test_the_nearest_object_hides_the_others_and_none_hides_it():
    hidden = 0
    for scene in SCENES[:60]:
        drawn = picture(scene)
        assert np.array_equal(drawn.seen[-1], drawn.whole[-1])
        for number in range(len(scene.things)):
            nearer = drawn.whole[number + 1 :].any(axis=0)
            assert np.array_equal(drawn.seen[number], drawn.whole[number] & ~nearer)
            hidden += (drawn.whole[number] & nearer).sum() > 5
            assert drawn.seen[number].sum() > 0.4 * drawn.whole[number].sum(), "what is behind stays recognisable"
    assert hidden > 10


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_has_its_colour_where_its_mask_is(shape):
    """The mask shifted aside does not fit: this is about places, not about averages."""
    for colour in ("red", "blue", "cyan"):
        drawn = picture(Scene((Thing(shape, colour, size=0.2),), light=0.0), 96)
        near = np.abs(drawn.image.astype(int) - COLOURS[colour]).max(axis=-1) < 8
        assert near[drawn.seen[0]].mean() > 0.35 and not near[~grown(drawn.seen[0], 1)].any()
        other = picture(Scene((Thing(shape, "yellow", size=0.2),), light=0.0), 96)
        assert np.array_equal(drawn.seen, other.seen)


def test_every_pair_of_colours_and_every_colour_and_background_differ_clearly():
    """In CIE Lab, where a distance of 2.3 is just seen."""
    from skimage.color import rgb2lab

    def lab(rgb):
        return rgb2lab(np.array(rgb, dtype=np.uint8).reshape(1, -1, 3))[0]

    for one, other in combinations(COLOURS.values(), 2):
        assert np.linalg.norm(lab(one) - lab(other)) > 25
    for place in PLACES:
        for time in TIMES:
            for season in SEASONS if place in SEASONAL else ("summer",):
                empty = render(Scene((), place, time, season))[32:]
                ground = np.median(empty.reshape(-1, 3), axis=0)
                for colour in COLOURS:
                    drawn = picture(Scene((Thing("square", colour, size=0.2),), place, time, season))
                    inside = np.median(drawn.image[drawn.seen[0]], axis=0)
                    assert np.linalg.norm(lab(inside) - lab(ground)) > 25, (place, time, season, colour)


def test_boxes_are_tight():
    for scene in SCENES[:20]:
        for mask in picture(scene).whole:
            left, top, right, bottom = box(mask)
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
    assert box(np.zeros((4, 4), dtype=bool)) == (0, 0, 0, 0)


def test_the_sketch_draws_the_borders_of_the_objects():
    drawn = picture(PAIR)
    inside = drawn.seen.any(axis=0) & ~grown(~drawn.seen.any(axis=0), 2)
    border = grown(drawn.seen[1], 1) & grown(~drawn.seen[1], 1)
    assert (drawn.sketch[inside] == 255).all() and drawn.sketch[border].mean() < 160
    assert drawn.sketch.mean() > 200


def test_edges_are_anti_aliased():
    scene = Scene((Thing("circle", "red", size=0.2),), "room")
    fine = render(scene, 256).astype(float)
    smooth = fine.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(render(scene) - smooth).mean() < 0.6 * np.abs(fine[::4, ::4] - smooth).mean()


def test_a_window_magnifies_the_scene():
    whole = render(PAIR, 128)
    part = render(PAIR, 64, Window((0.75, 0.75), 2.0))
    assert np.abs(part.astype(int) - whole[64:, 64:]).mean() < 3
    assert np.abs(part.astype(int) - whole[:64, 64:]).mean() > 20


@pytest.mark.parametrize("place", SEASONAL)
@pytest.mark.parametrize("time", TIMES)
def test_snow_lies_in_winter_alone(place, time):
    covered = {season: (picture(Scene((), place, time, season)).labels == SNOW).mean() for season in SEASONS}
    assert covered["winter"] > 0.35 and covered["summer"] < 0.05
    pair = [render(Scene((), place, time, season))[40:].astype(int) for season in SEASONS]
    assert np.abs(pair[0] - pair[1]).mean() > 12


@pytest.mark.parametrize("place", PLACES)
def test_night_is_dark_and_objects_keep_their_colours(place):
    day, night = (picture(replace(PAIR, place=place, time=time, season="summer")) for time in TIMES)
    ground = day.instances == 0
    assert night.image[ground].mean() < 0.6 * day.image[ground].mean()
    assert np.array_equal(day.instances, night.instances)
    assert np.abs(day.image[~ground].astype(int) - night.image[~ground]).mean() < 40


def test_every_style_changes_every_picture_and_keeps_its_maps():
    plain = picture(PAIR)
    looks = [picture(replace(PAIR, style=style)) for style in STYLES if style != "plain"]
    assert all(np.array_equal(look.labels, plain.labels) for look in looks)
    assert all(differing(a.image, b.image).mean() > 15 for a, b in combinations([plain, *looks], 2))
    grey = looks[0].image
    assert np.array_equal(grey[..., 0], grey[..., 1]), "a pencil has no colour"


# -- captions


def test_captions_are_true_of_their_scene():
    rng = np.random.default_rng(0)
    texts = set()
    for scene in SCENES * 8:
        drawn = draw_caption(scene, rng)
        assert holds(drawn, scene), drawn
        texts.add(drawn.text)
        assert "season" not in drawn.claims or visible(scene)["season"]
    assert len(texts) > 500
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\{|^\s|\s$", text)]


def test_a_caption_names_what_it_claims_and_nothing_else():
    rng = np.random.default_rng(1)
    tables = {"shape": SHAPE_WORDS, "colour": COLOUR_WORDS, "texture": TEXTURE_WORDS}
    for scene in SCENES:
        drawn = draw_caption(scene, rng)
        things = drawn.claims.get("things", ())
        for name, table in tables.items():
            told = {value for value, words in table.items() if any(re.search(rf"\b{word}\b", drawn.text) for word in words)}
            assert told == {thing[name] for thing in things if name in thing}, drawn


def test_captions_of_objects_are_true_of_the_scene_and_fail_without_the_object():
    rng = np.random.default_rng(2)
    failed = 0
    for scene in SCENES:
        for thing in scene.things:
            drawn = thing_caption(thing, rng)
            assert holds(drawn, scene)
            failed += not holds(drawn, replace(scene, things=tuple(one for one in scene.things if one is not thing)))
    assert failed > 150


@pytest.mark.parametrize(
    ("claims", "true"),
    [
        ({"place": ("beach",)}, True),
        ({"place": ("room", "beach")}, True),
        ({"place": ("room",)}, False),
        ({"count": (2,)}, True),
        ({"count": (3,)}, False),
        ({"things": ({"shape": "star", "colour": "red"},)}, True),
        ({"things": ({"shape": "star", "colour": "blue"},)}, False),
        ({"things": ({"colour": "blue"}, {"shape": "star"})}, True),
        ({"things": ({"colour": "red"}, {"shape": "star"})}, False),  # one object cannot stand for two
        ({"things": ({"shape": "star", "side": "left"},)}, True),
        ({"things": ({"shape": "star", "side": "right"},)}, False),
        ({"things": ({"shape": "star"}, {"shape": "cup"}), "left_of": ((0, 1),)}, True),
        ({"things": ({"shape": "star"}, {"shape": "cup"}), "left_of": ((1, 0),)}, False),
        ({"time": ("night",), "things": ({"texture": "dotted"},)}, False),
        ({}, True),
    ],
)
def test_claims_are_judged(claims, true):
    assert holds(Caption("", claims), PAIR) is true


def test_the_full_caption_says_everything():
    assert full_caption(PAIR).text == "a striped red star and a blue cup on a beach at night in winter"
    assert full_caption(replace(PAIR, style="mosaic")).text.startswith("a mosaic of a striped red star")
    assert all(holds(full_caption(scene), scene) for scene in SCENES)
    for change in ({"place": "street"}, {"time": "day"}, {"season": "summer"}, {"things": (CUP,)}):
        assert not holds(full_caption(PAIR), replace(PAIR, **change))


# -- edits


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_its_factor_and_the_picture_only_inside_its_mask(kind):
    for index in range(10):
        edit = edit_at("test", index, [kind])
        assert edit.kind == kind and not held_out(edit.target) and distinct(edit.target.things)
        source, target, mask = render(edit.source), render(edit.target), edit.mask()
        changed = differing(source, target)
        assert (changed[mask] > 40).any(), "it is seen"
        assert changed[~mask].max(initial=0) <= (6 if kind == "place" else 0), "a new place blurs the objects' edges"
        assert mask.all() == (kind in ("time", "season", "restyle")) and mask.mean() > 0.02
        before, after = measured(edit.source), measured(edit.target)
        moved = {name for name in before if before[name] != after[name]}
        if kind in OF_OBJECTS:
            assert moved == ({"things", "count"} if kind in ("add", "remove") else {"things"})
            assert set(edit.source.things) ^ set(edit.target.things) == {one for one in (edit.before, edit.after) if one}
        else:
            assert moved - {"season" if kind == "place" else ""} == {"style" if kind == "restyle" else kind}
            assert edit.before is edit.after is None


@pytest.mark.parametrize(
    ("kind", "field"), [("recolour", "colour"), ("reshape", "shape"), ("retexture", "texture"), ("move", "x")]
)
def test_one_field_of_one_object_changes(kind, field):
    for index in range(20):
        edit = edit_at("validation", index, [kind])
        assert replace(edit.before, **{field: getattr(edit.after, field)}) == edit.after != edit.before


def test_an_instruction_says_what_changes():
    tables = {"recolour": ("colour", COLOUR_WORDS), "reshape": ("shape", SHAPE_WORDS), "add": ("shape", SHAPE_WORDS)}
    for kind, (field, table) in tables.items():
        for index in range(20):
            edit = edit_at("test", index, [kind])
            assert any(word in edit.instruction for word in table[getattr(edit.after, field)])
    for index in range(20):
        edit = edit_at("test", index, ["remove"])
        assert any(word in edit.instruction for word in SHAPE_WORDS[edit.before.shape])
        edit = edit_at("test", index, ["move"])
        where = re.search("left|middle|right", edit.instruction).group()
        assert (edit.after.x < 0.35, 0.4 < edit.after.x < 0.6, edit.after.x > 0.65) == tuple(
            where == side for side in ("left", "middle", "right")
        )


def test_a_name_means_one_object_alone():
    rng = np.random.default_rng(0)
    red, blue = Thing("star", "red", x=0.2), Thing("star", "blue", "dotted", x=0.8)
    names = {name_of(red, (red, blue), rng) for _ in range(30)}
    assert names == {"the red star"}
    assert {name_of(blue, (red, blue), rng) for _ in range(60)} >= {"the blue star", "the dotted star"}
    assert "the star" in {name_of(red, (red, CUP), rng) for _ in range(30)}


def test_a_scene_without_a_kind_of_edit_says_so_and_the_split_finds_another():
    alone, indoors = Scene((STAR,)), Scene((STAR,), "room")
    rng = np.random.default_rng(0)
    assert draw_edit(alone, rng, ["remove"]) is None and draw_edit(indoors, rng, ["season"]) is None
    assert draw_edit(next(scene for scene in SCENES if len(scene.things) == 4), rng, ["add"]) is None
    assert all(len(edit_at("test", index, ["remove"]).source.things) > 1 for index in range(20))


def test_a_place_without_seasons_is_in_summer():
    assert at_place(PAIR, "room").season == "summer" and at_place(PAIR, "meadow").season == "winter"


def test_a_dialog_goes_on_from_its_own_result():
    for index in range(15):
        rounds = dialog_at("test", index, 4)
        assert len(rounds) == 4 and rounds[0].edit.source == scene_at("test", index)
        assert all(later.edit.source == earlier.edit.target for earlier, later in pairwise(rounds))
        for one in rounds:
            assert [role for role, _ in one.turns] == ["user", "assistant"] * (len(one.turns) // 2)
            assert one.turns[-1] == ("assistant", one.edit.instruction)
            assert not any("{" in text or not text for _, text in one.turns)
        assert all(one.edit.kind != "restyle" for one in rounds[:-1])
    assert {len(one.turns) for index in range(15) for one in dialog_at("test", index)} == {2, 4}


# -- second views and exemplars


def test_a_second_view_shows_the_same_objects_in_another_pose_and_light():
    def kinds(scene):
        return sorted((thing.shape, thing.colour, thing.texture) for thing in scene.things)

    for index in range(40):
        one, other = scene_at("test", index), second_view_at("test", index)
        assert kinds(one) == kinds(other) and (one.place, one.time, one.season) == (other.place, other.time, other.season)
        assert one.light * other.light < 0 and not set(one.things) & set(other.things)
        assert {thing.angle for thing in one.things}.isdisjoint(thing.angle for thing in other.things)
        assert (differing(render(one), render(other)) > 40).mean() > 0.02
        assert all(0 < thing.x < 1 and thing.feet < 1.05 for thing in other.things)


def test_an_exemplar_pair_swaps_one_object_for_the_one_in_the_reference():
    for index in range(20):
        pair = exemplar_at("test", index)
        assert pair.target == scene_at("test", index) and pair.thing in pair.target.things
        (other,) = set(pair.source.things) - set(pair.target.things)
        assert (other.x, other.y, other.size) == (pair.thing.x, pair.thing.y, pair.thing.size) and distinct(pair.source.things)
        assert (other.shape, other.colour) != (pair.thing.shape, pair.thing.colour)
        changed = differing(render(pair.source), render(pair.target))
        assert changed[pair.mask()].max() > 40 and not changed[~pair.mask()].any()
        same = ("shape", "colour", "texture")
        assert all(getattr(pair.shown, name) == getattr(pair.thing, name) for name in same)
        assert pair.shown in pair.view.things and pair.shown != pair.thing


def test_a_reference_is_a_crop_about_the_object():
    for index in range(20):
        pair = exemplar_at("test", index)
        crop, mask = pair.reference(64)
        whole = picture(pair.view, 64, Window((pair.shown.x, pair.shown.y), 0.5 / (1.35 * pair.shown.size)))
        assert np.array_equal(crop, whole.image) and 0.08 < mask.mean() < 0.6
        rows, columns = np.nonzero(mask)
        assert abs(rows.mean() - 32) < 14 and abs(columns.mean() - 32) < 14


# -- data sets


def test_items_of_the_data_module():
    data = Scenes(size=32, train=6, validation=3, test=2)
    datasets = (data.train_dataset(), data.validation_dataset(), data.test_dataset())
    assert [(len(d), d.split) for d in datasets] == [(6, "train"), (3, "validation"), (2, "test")]
    item, sample, scene = datasets[0][-1], sample_at("train", 5, 32), scene_at("train", 5)
    count = len(scene.things)
    assert np.array_equal(image_array(item["image"]), sample.image)
    assert np.array_equal(item["labels"].numpy(), sample.labels)
    assert (item["key"], item["index"], item["caption"]) == ("scenes/train/000005", 5, caption_at("train", 5).text)
    assert item["factors"] == sample.factors and item["visible"] == sample.visibility
    assert item["object_masks"].shape == item["whole_masks"].shape == (4, 32, 32) and item["boxes"].shape == (4, 4)
    assert item["object_masks"].flatten(1).any(dim=1).tolist() == [k < count for k in range(4)]
    assert item["object_captions"] == tuple(text.text for text in thing_captions_at("train", 5))
    assert torch.equal(item["object_masks"].sum(dim=0), (item["instances"] > 0).float())
    assert item["sketch"].shape == (1, 32, 32) and item["sketch"].max() == 1 and item["sketch"].median() == 0
    with pytest.raises(IndexError):
        datasets[2][2]


def test_items_of_edits():
    dataset = SceneEdits("test", 4, 32, ["recolour", "remove"])
    items = [dataset[index] for index in range(4)]
    assert {item["kind"] for item in items} <= {"recolour", "remove"}
    for index, item in enumerate(items):
        edit = edit_at("test", index, ["recolour", "remove"])
        assert np.array_equal(image_array(item["image"]), render(edit.source, 32))
        assert np.array_equal(image_array(item["target"]), render(edit.target, 32))
        assert np.array_equal(item["mask"][0].numpy(), edit.mask(32)) and item["instruction"] == edit.instruction
        assert (item["caption"], item["target_caption"]) == (full_caption(edit.source).text, full_caption(edit.target).text)


def test_items_of_exemplars():
    item, pair = SceneExemplars("test", 4, 32)[3], exemplar_at("test", 3)
    crop, shown = pair.reference(32)
    assert np.array_equal(image_array(item["image"]), render(pair.source, 32))
    assert np.array_equal(image_array(item["target"]), render(pair.target, 32))
    assert np.array_equal(image_array(item["references"][0]), crop)
    assert np.array_equal(item["reference_masks"][0][0].numpy(), shown)
    assert np.array_equal(item["mask"][0].numpy(), pair.mask(32))
    assert item["object_caption"] in item["target_caption"] and item["object_caption"] not in item["caption"]


@pytest.mark.parametrize("module", [Scenes, SceneEditsData, SceneExemplarsData])
def test_lightning_reads_the_modules(module):
    batch = next(iter(module(size=16, train=9).train_dataloader()))
    assert batch["image"].shape == (8, 3, 16, 16) and len(batch["key"]) == 8
    name = "object_masks" if module is Scenes else "mask"
    assert batch[name].shape[0] == 8 and batch[name].dtype == torch.float32
    with pytest.raises(ValueError, match="same keys"):
        collate([module(size=16, train=1).train_dataset()[0], {}])


def test_the_kinds_reach_every_split():
    data = SceneEditsData(size=16, train=2, validation=2, test=2, kinds=["time"])
    assert all(d[1]["kind"] == "time" for d in (data.train_dataset(), data.validation_dataset(), data.test_dataset()))


def test_the_rendered_folder_passes_its_check_and_reads_back(tmp_path):
    assert DOMAINS["scenes"].parts == PARTS and len(PALETTE) >= max(len(domain.parts) for domain in DOMAINS.values())
    folder = render_folder("scenes", 4, tmp_path / "out", split="test", size=32)
    assert [finding.kind for finding in check_data(folder)] == ["ok"]
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        sample, name = sample_at("test", index, 32), f"{index:06d}.png"
        for layer in ("instances", "sketches"):
            assert np.array_equal(np.asarray(Image.open(folder / layer / name)), sample.layers[layer])
        kept = line["rendered_from"]
        scene = Scene(**{**kept, "things": tuple(Thing(**thing) for thing in kept["things"])})
        assert np.array_equal(render(scene, 32), sample.image)
        assert [one["text"] for one in line["objects"]] == [one["text"] for one in sample.notes["objects"]]
        for one, mask in zip(line["objects"], picture(scene, 32).seen, strict=True):
            assert tuple(one["box"]) == box(mask)
    data = Folder(folder, 32)
    items = [item for d in (data.train_dataset(), data.validation_dataset(), data.test_dataset()) for item in d]
    assert len(items) == 4 and all(item["factors"] == measured(scene_at("test", int(item["key"][-10:-4]))) for item in items)
