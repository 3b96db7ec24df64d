"""The toy world: determinism, splits, exact answers to edits, labels, captions that are true."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from editkit.data.faces import FaceDataset, Faces
from editkit.data.items import collate, image_array
from editkit.data.toyworld.captions import PLAIN, Caption, caption, holds, holds_matrix, unclear_pairs
from editkit.data.toyworld.claims import SAYABLE, age_group, measured, merged, satisfied
from editkit.data.toyworld.faces import (
    BACKGROUND,
    BACKGROUNDS,
    BROWS,
    CATEGORICAL,
    CLOTHES,
    CONTINUOUS,
    EYES,
    GLASSES,
    HAIR,
    HAIRS,
    MOUTH,
    PARTS,
    SHIRTS,
    SKIN,
    SKINS,
    Face,
    edited,
    held_out,
    implied,
    render,
    shade,
    visible,
)
from editkit.data.toyworld.world import DOMAINS, EDITS, SPLITS, caption_at, counterfactual, face_at, find_edit, sample_at, sources
from editkit.errors import UsageError

FACES = [face_at("test", index) for index in range(300)]


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Grow a mask by some pixels in the maximum norm."""
    for _ in range(by):
        padded = np.pad(mask, 1)
        shifts = [padded[i : i + mask.shape[0], j : j + mask.shape[1]] for i in range(3) for j in range(3)]
        mask = np.any(shifts, axis=0)
    return mask


def interior(labels: np.ndarray, part: int, by: int = 2) -> np.ndarray:
    return ~grown(labels != part, by)


def test_a_sample_is_a_function_of_split_and_index():
    first = sample_at("test", 7)
    face_at.cache_clear()
    again = sample_at("test", 7)
    assert first.rendered_from == again.rendered_from and first.caption == again.caption
    assert np.array_equal(first.image, again.image) and np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.image, sample_at("test", 8).image)


def test_the_training_faces_stay_those_that_the_bundled_models_saw():
    face = face_at("train", 0)
    assert (face.skin, face.hair_style, face.shirt, face.expression) == ("brown", "short", "white", "angry")
    assert face.age == pytest.approx(29.58473327301796)
    assert dict(SPLITS) == {"train": 0, "validation": 1, "test": 2, "heldout": 3}


def test_splits_are_disjoint():
    seen = [{face_at(split, index) for index in range(200)} for split in SPLITS]
    assert len(set().union(*seen)) == 200 * len(SPLITS)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_held_out_combinations_are_only_in_their_own_split(split):
    assert not any(held_out(face_at(split, index)) for index in range(400))
    assert all(held_out(face_at("heldout", index)) for index in range(40))


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'validation'"):
        face_at("validaton", 0)
    with pytest.raises(UsageError, match="Did you mean 'smiling'"):
        find_edit("smilling")
    with pytest.raises(UsageError, match="split"):
        FaceDataset("tets", 4)
    with pytest.raises(ValueError, match="no factor 'hat'"):
        edited(Face(), hat=True)


@pytest.mark.parametrize("name", ["with glasses", "with-glasses", "With_Glasses", "a face with glasses"])
def test_an_edit_is_found_by_name_or_prompt(name):
    assert find_edit(name) is EDITS["with glasses"]


def test_measured_factors_are_in_their_ranges():
    for face in FACES:
        factors = measured(face)
        assert set(factors) == set(CATEGORICAL) | set(CONTINUOUS) == set(visible(face))
        assert all(factors[name] in values for name, values in CATEGORICAL.items())
        assert all(low <= factors[name] <= high for name, (low, high) in CONTINUOUS.items())


def test_hair_colour_is_visible_only_where_there_is_hair():
    assert not visible(Face(hair_style="bald"))["shown_hair"]
    assert visible(Face(hair_style="bald", beard=True))["shown_hair"]
    assert visible(Face(hair_style="short"))["shown_hair"]
    assert replace(Face(), age=70.0).shown_hair == "grey" and "shown_hair" in implied("age")


@pytest.mark.parametrize("name", list(EDITS))
def test_an_edit_reaches_its_target_and_changes_nothing_else(name):
    edit = EDITS[name]
    allowed = {factor for changed in edit.changes for factor in implied("shown_hair" if changed == "hair_colour" else changed)}
    for index in sources(edit, "validation", 8):
        source = face_at("validation", index)
        target = counterfactual(source, name)
        before, after = measured(source), measured(target)
        assert not edit.done(before) and edit.done(after)
        assert {factor for factor in before if before[factor] != after[factor]} <= allowed
        assert not np.array_equal(render(source)[0], render(target)[0])


def test_sources_of_an_edit_show_that_they_are_none_of_its_results():
    assert not EDITS["smiling"].eligible(Face(expression="smiling")) and EDITS["smiling"].eligible(Face(expression="sad"))
    assert not EDITS["young"].eligible(Face(age=40.0)) and EDITS["young"].eligible(Face(age=61.0))
    assert not EDITS["with beard"].eligible(Face(look="feminine")) and EDITS["with beard"].eligible(Face(look="masculine"))
    assert not EDITS["red hair"].eligible(Face(hair_colour="blond", age=56.0)) and EDITS["red hair"].eligible(
        Face(hair_colour="blond")
    )
    assert not EDITS["grey hair"].eligible(Face(hair_style="bald"))


@pytest.mark.parametrize("name", ["smiling", "angry", "sad", "neutral"])
def test_an_expression_changes_mouth_and_brows_only(name):
    for index in sources(EDITS[name], "test", 10):
        source = face_at("test", index)
        before, labels = render(source, labels=True)
        after, new_labels = render(counterfactual(source, name), labels=True)
        changed = (before.astype(int) != after).any(axis=-1)
        near = grown(np.isin(labels, [BROWS, MOUTH]) | np.isin(new_labels, [BROWS, MOUTH]), 5)
        assert changed.any() and not (changed & ~near).any()
        assert not (changed & interior(labels, BACKGROUND, 3)).any()
        assert not (changed & (labels == CLOTHES)).any()


def test_age_leaves_background_and_clothes_alone():
    for index in sources(EDITS["old"], "test", 10):
        source = face_at("test", index)
        before, labels = render(source, labels=True)
        changed = (before.astype(int) != render(counterfactual(source, "old"))[0]).any(axis=-1)
        assert not (changed & (interior(labels, BACKGROUND, 3) | interior(labels, CLOTHES, 3))).any()
        assert not (changed & interior(labels, EYES, 3)).any()


def test_glasses_appear_in_the_labels_with_the_edit():
    source = face_at("test", sources(EDITS["with glasses"], "test", 1)[0])
    assert not (render(source, labels=True)[1] == GLASSES).any()
    assert (render(counterfactual(source, "with glasses"), labels=True)[1] == GLASSES).sum() > 30


def labels_fit(picture: np.ndarray, labels: np.ndarray, face: Face) -> bool:
    """Whether the inside of background and clothes has their colours."""
    parts = ((BACKGROUND, shade(BACKGROUNDS[face.background], face.tint)), (CLOTHES, SHIRTS[face.shirt]))
    inside = [np.abs(picture[interior(labels, part, 3)].astype(int) - colour) for part, colour in parts]
    return all(len(distance) > 10 and distance.max() <= 3 for distance in inside)


@pytest.mark.parametrize("size", [64, 96])
def test_labels_match_the_picture(size):
    for face in FACES[:40]:
        picture, labels = render(face, size, labels=True)
        assert labels.shape == (size, size) and labels.max() < len(PARTS)
        assert labels_fit(picture, labels, face)
        assert not labels_fit(picture, np.roll(labels, 8, axis=1), face)
        assert (labels == EYES).any() and (labels == MOUTH).any()
        assert (labels == HAIR).any() == (face.hair_style != "bald" or face.beard)


def test_skin_and_hair_have_the_colours_that_the_factors_name():
    plain = Face(hair_style="long", hair_colour="black", skin="pale", age=25.0)
    picture, labels = render(plain, 128, labels=True)
    hair, skin = picture[interior(labels, HAIR, 4)].astype(int), picture[interior(labels, SKIN, 4)].astype(int)
    assert np.abs(hair - HAIRS["black"]).max() <= 3
    assert np.median(np.abs(skin - SKINS["pale"]).max(axis=-1)) == 0


def test_edges_are_anti_aliased():
    face = Face(hair_style="bald", glasses=False)
    picture = render(face)[0].astype(int)
    skin, ground = np.array(SKINS[face.skin]), np.array(BACKGROUNDS[face.background])
    row = picture[28]  # crosses the edge of the head
    between = (np.abs(row - skin).max(axis=-1) > 12) & (np.abs(row - ground).max(axis=-1) > 12)
    assert between[:20].any()
    fine = render(face, 256)[0].astype(float).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(picture - fine).mean() < 1.5
    hard = render(face, 256)[0][::4, ::4].astype(float)  # what a renderer without anti-aliasing would give
    assert np.abs(hard - fine).mean() > 1.5 * np.abs(picture - fine).mean()


def test_captions_are_true_of_their_face_and_speak_of_what_can_be_seen():
    rng = np.random.default_rng(0)
    for face in FACES * 4:
        drawn = caption(face, rng)
        assert holds(drawn, face), drawn
        assert all(set(values) <= set(SAYABLE[name]) for name, values in drawn.claims.items())
        assert "shown_hair" not in drawn.claims or visible(face)["shown_hair"]
        assert not unclear_pairs([drawn], [face]).any()


def test_a_caption_is_false_once_a_claimed_factor_changes():
    rng = np.random.default_rng(1)
    other = {
        "glasses": lambda f: not f.glasses,
        "beard": lambda f: not f.beard,
        "brow": lambda f: {"thin": "thick", "thick": "thin"}[f.brow],
    }
    tried = 0
    for face in FACES * 3:
        drawn = caption(face, rng)
        for name in set(drawn.claims) & set(other):
            assert not holds(drawn, edited(face, **{name: other[name](face)}))
            tried += 1
    assert tried > 50


@pytest.mark.parametrize(
    ("claims", "face", "true"),
    [
        ({"expression": ("smiling",)}, Face(expression="smiling"), True),
        ({"expression": ("smiling",)}, Face(expression="sad"), False),
        ({"age": ("old",)}, Face(age=60.0), True),
        ({"age": ("old",)}, Face(age=59.9), False),
        ({"age": ("young",)}, Face(age=35.0), True),
        ({"age": ("middle-aged",)}, Face(age=35.1), True),
        ({"shown_hair": ("grey",)}, Face(hair_colour="red", age=70.0), True),
        ({"shown_hair": ("red",)}, Face(hair_colour="red", age=70.0), False),
        ({"shown_hair": ("red",), "hair_style": ("short", "long")}, Face(hair_colour="red", hair_style="bald"), False),
        ({"glasses": (False,)}, Face(glasses=True), False),
        ({"glasses": (True,), "beard": (True,)}, Face(glasses=True), False),
        ({}, Face(), True),
    ],
)
def test_claims_are_judged(claims, face, true):
    assert holds(Caption("", claims), face) is true


def test_the_matrix_agrees_with_single_answers():
    rng = np.random.default_rng(2)
    captions = [caption(face, rng) for face in FACES[:60]]
    matrix = holds_matrix(captions, FACES[:50])
    assert matrix.shape == (60, 50) and 0.02 < matrix.mean() < 0.6
    assert np.array_equal(matrix, [[holds(c, face) for face in FACES[:50]] for c in captions])


def test_what_cannot_be_seen_is_marked():
    faces = [Face(age=40.0), Face(age=25.0), Face(age=57.0), Face(age=75.0)]
    claims = [Caption("", {"age": ("young",)}), Caption("", {"shown_hair": ("grey",)}), Caption("", {"glasses": (True,)})]
    assert unclear_pairs(claims, faces).tolist() == [[True, False, False, False], [False, False, True, False], [False] * 4]


def test_captions_are_well_formed_and_hold_the_plain_prompts():
    rng = np.random.default_rng(3)
    drawn = [caption(face, rng) for face in FACES * 12]
    texts = {c.text for c in drawn}
    assert not [text for text in texts if re.search(r"\ba [aeiou]|\ban [^aeiou]|  |\{|^\s|\s$", text)]
    assert len(texts) > 1500
    for name in ("smiling", "angry", "old", "with glasses"):
        same = [c for c in drawn if c.text == EDITS[name].prompt]
        assert same and all(dict(c.claims) == dict(EDITS[name].target) for c in same)
    assert {"a face", "a photo of a face"} <= {c.text for c in PLAIN} and all(not c.claims for c in PLAIN)
    assert {name for c in drawn for name in c.claims} == set(SAYABLE)
    assert max(len(c.claims) for c in drawn) > 7


def test_claims_join_by_intersection():
    joined = merged({"hair_style": ("short", "long")}, {"hair_style": ("long",), "beard": (True,)})
    assert joined == {"hair_style": ("long",), "beard": (True,)}
    assert not satisfied({"hair_style": ()}, measured(Face()))
    assert [age_group(age) for age in (20, 35, 36, 59, 60)] == ["young", "young", "middle-aged", "middle-aged", "old"]


def test_items_of_the_data_module():
    data = Faces(size=32, train=6, validation=3, test=2)
    datasets = (data.train_dataset(), data.validation_dataset(), data.test_dataset())
    assert [len(d) for d in datasets] == [6, 3, 2]
    item = datasets[0][4]
    sample = sample_at("train", 4, 32)
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.float32
    assert np.array_equal(image_array(item["image"]), sample.image)
    assert np.array_equal(item["labels"].numpy(), sample.labels)
    assert (item["key"], item["caption"], item["factors"]) == (sample.key, caption_at("train", 4).text, sample.factors)
    assert item["visible"] == sample.visibility and item["index"] == 4
    with pytest.raises(IndexError):
        datasets[2][2]


def test_the_cache_gives_the_same_items(tmp_path):
    plain, kept = (Faces(size=16, train=10, cache_dir=folder).train_dataset() for folder in (None, tmp_path))
    for index in (0, 9):
        assert torch.equal(plain[index]["image"], kept[index]["image"]) and torch.equal(
            plain[index]["labels"], kept[index]["labels"]
        )
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
    assert len(Faces(size=16, train=12, cache_dir=tmp_path).train_dataset()) == 12


def test_a_batch_keeps_factors_as_a_list():
    data = FaceDataset("test", 4, 16)
    batch = collate([data[0], data[3]])
    assert batch["image"].shape == (2, 3, 16, 16) and batch["labels"].shape == (2, 16, 16)
    assert batch["factors"] == [data[0]["factors"], data[3]["factors"]] and batch["index"].tolist() == [0, 3]
    assert collate([{"a": None}, {"a": None}]) == {}
    with pytest.raises(ValueError, match="same keys"):
        collate([{"a": 1}, {"b": 1}])


def test_lightning_reads_the_module():
    batch = next(iter(Faces(size=16, train=9).train_dataloader()))
    assert batch["image"].shape == (8, 3, 16, 16) and len(batch["key"]) == 8


def test_domains_draw_samples_by_split_and_index():
    domain = DOMAINS["faces"]
    assert domain.parts == PARTS
    assert domain.sample("test", 3, 16).key == "faces/test/000003"
