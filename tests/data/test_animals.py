"""Animals: one head as a cat, a dog or a fox is the answer to a translation whose domains are never seen in pairs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from editkit.data.animals import AnimalDataset, Animals
from editkit.data.toyworld import animals
from editkit.data.toyworld.animals import (
    CATEGORICAL,
    CONTINUOUS,
    KINDS,
    PARTS,
    animal_at,
    held_out,
    render,
    sample_at,
    translated,
)
from editkit.errors import UsageError


def pictures(kind, count=40):
    return [render(animal_at("train", k, kind), 64)[0].astype(float) for k in range(count)]


def test_an_animal_is_the_same_every_time_and_another_in_every_split_and_kind():
    assert animal_at("train", 3, "cat") == animal_at("train", 3, "cat")
    drawn = [replace(animal_at(split, 3, kind), kind="cat") for split in ("train", "validation", "test") for kind in KINDS]
    assert len(set(drawn)) == 9


def test_held_out_combinations_are_in_the_held_out_split_alone():
    assert not any(held_out(animal_at(split, k, "dog")) for split in ("train", "test") for k in range(300))
    assert all(held_out(animal_at("heldout", k, "fox")) for k in range(20))


@pytest.mark.parametrize(("source", "target"), itertools.permutations(KINDS, 2))
def test_a_translation_changes_the_head_and_nothing_else(source, target):
    for k in range(10):
        animal = animal_at("test", k, source)
        (before, parts), (after, new) = (render(one, 64, labels=True) for one in (animal, translated(animal, target)))
        assert animals.measured(translated(animal, target)) == {**animals.measured(animal), "kind": target}
        same = (parts == new) & np.isin(parts, [PARTS.index("background"), PARTS.index("collar")])
        inner = np.asarray(Image.fromarray(same).convert("L").filter(ImageFilter.MinFilter(7))) > 0  # Lanczos rings at edges
        moved = np.abs(before[inner].astype(int) - after[inner]).max(-1) > 12
        assert inner.mean() > 0.1 and moved.mean() < 0.003, "all but a whisker's tip, which no label shows"
        assert np.abs(before.astype(int) - after).mean() > 6, "nobody would mistake one for the other"


def test_kinds_look_alike_within_and_different_between():
    """The nearest mean picture, colours aside, names the kind of new animals."""
    means = {kind: np.mean([picture.mean(-1) - picture.mean() for picture in pictures(kind)], 0) for kind in KINDS}
    right = 0
    for kind in KINDS:
        for k in range(20):
            picture = render(replace(animal_at("test", k, kind), x=0.5, y=0.51, size=0.28, tilt=0.0), 64)[0].astype(float)
            flat = picture.mean(-1) - picture.mean()
            right += kind == max(KINDS, key=lambda name: float((flat * means[name]).sum() / np.linalg.norm(means[name])))
    assert right > 40


def test_every_factor_can_be_seen():
    plain = animal_at("test", 5, "cat")
    for name, values in CATEGORICAL.items():
        shown = {render(replace(plain, **{name: value}), 64)[0].tobytes() for value in values}
        assert len(shown) == len(values), name
    for name, span in CONTINUOUS.items():
        one, two = (render(replace(plain, **{name: value}), 64)[0].astype(int) for value in span)
        assert np.abs(one - two).max() > 60, name


def test_a_head_stays_in_the_picture():
    for kind, x, y in itertools.product(KINDS, CONTINUOUS["x"], CONTINUOUS["y"]):
        _, labels = render(animals.Animal(kind, x=x, y=y, size=CONTINUOUS["size"][1]), 64, labels=True)
        eyes = np.argwhere(labels == PARTS.index("eyes"))
        assert eyes.min() > 2 and eyes.max() < 61
        assert {PARTS.index(part) for part in ("fur", "ears", "muzzle", "eyes", "nose", "collar")} <= set(np.unique(labels))


def test_samples_take_the_kinds_in_turn_with_true_captions():
    samples = [sample_at("test", k) for k in range(6)]
    assert [sample.factors["kind"] for sample in samples] == [*KINDS, *KINDS]
    for sample in samples:
        assert all(sample.factors[name] in values for name, values in sample.caption.claims.items())
        assert str(sample.factors["kind"]) in sample.caption.text and str(sample.factors["collar"]) in sample.caption.text


def test_a_data_set_numbers_its_domains_and_never_pairs_them():
    data = AnimalDataset("train", 10, 64, ("dog", "cat"))
    items = [data[k] for k in range(10)]
    assert [item["domain"] for item in items] == [0, 1] * 5
    assert [item["factors"]["kind"] for item in items] == ["dog", "cat"] * 5
    assert items[0]["image"].shape == (3, 64, 64) and items[0]["labels"].max() < len(PARTS)
    others = [{name: value for name, value in item["factors"].items() if name != "kind"} for item in items]
    assert all(others[k] != others[k + 1] for k in range(0, 10, 2))
    assert len({item["key"] for item in items}) == 10
    alone = AnimalDataset("train", 4, 64, ["cat"])
    assert [item["key"] for item in items[1::2]][:4] == [alone[k]["key"] for k in range(4)], "an animal keeps its name"
    assert Animals(train=7, kinds=["fox"]).dataset("train")[6]["factors"]["kind"] == "fox"


@pytest.mark.parametrize(
    ("kinds", "said"), [(["dgo"], "unknown 'dgo'.*dog"), ([], "needs one or more"), (["cat", "cat"], "each once")]
)
def test_wrong_kinds_are_named(kinds, said):
    with pytest.raises(UsageError, match=said):
        AnimalDataset("train", 4, 64, kinds)
    with pytest.raises(UsageError, match="has no 'wolf'"):
        animal_at("train", 0, "wolf")
