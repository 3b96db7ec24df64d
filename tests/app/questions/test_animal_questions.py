"""Questions about animals: their exact answers score best, doing nothing and wrong animals do not."""

from __future__ import annotations

import pytest
import torch

from editkit.app.questions import questions_named
from editkit.app.questions.base import pictures
from editkit.data.toyworld import animals
from editkit.data.toyworld.animals import animal_at
from editkit.errors import UsageError
from tests.app.questions.perfect import Perfect

ASKED = questions_named("animals")


@pytest.fixture(scope="module")
def cases():
    return ASKED.cases(ASKED.find("cat-to-dog"), "test", 6, size=64)


@pytest.fixture(scope="module")
def oracle(cases):
    cats = [animal_at("test", k, "cat") for k in range(6)]
    shown = [*cats, *(animals.translated(cat, "dog") for cat in cats), *(animal_at("test", k, "dog") for k in range(6))]
    return Perfect(animals, shown, pictures(animals.render, shown))


def scores(oracle, cases, images):
    return {name: value.mean().item() for name, value in ASKED.score(oracle, cases, images).figures.items()}


def test_the_exact_answer_is_a_full_success(oracle, cases):
    found = scores(oracle, cases, cases.truth)
    assert (found["success"], found["preservation"], found["score"]) == (1.0, 1.0, 1.0) and found["psnr"] >= 60
    assert found["l2"] == pytest.approx(float(((cases.truth - cases.images) / 2).flatten(1).norm(dim=1).mean()), rel=1e-5)
    assert (cases.region.flatten(1).mean(1) > 0.1).all()


def test_doing_nothing_and_another_dog_are_not(oracle, cases):
    nothing = scores(oracle, cases, cases.images)
    assert nothing["success"] == 0 and nothing["preservation"] == 1 and nothing["l2"] == 0
    others = scores(oracle, cases, pictures(animals.render, [animal_at("test", k, "dog") for k in range(6)]))
    assert others["success"] == 1 and others["preservation"] < 0.6 and others["score"] < 0.8


def test_texts_and_names(cases):
    inputs = cases.inputs(0)
    assert " cat " in inputs["source_prompt"] and inputs["prompt"] == inputs["source_prompt"].replace(" cat ", " dog ")
    assert cases.keys[3] == "animals/test/cat/000003" and len(ASKED.edits()) == 6
    assert ASKED.usual({})[0].name == "cat to dog"
    with pytest.raises(UsageError, match="no edit of the animals is called 'cat to wolf'"):
        ASKED.find("cat to wolf")


def test_distances_compare_with_other_animals_of_the_target(oracle, cases):
    torch.manual_seed(0)
    with torch.no_grad():
        found = {(name, ""): oracle.features(images) for name, images in (("truth", cases.truth), ("none", cases.images))}
    distances = ASKED.distances(oracle, cases, "test", found)
    assert distances["truth", ""] == pytest.approx(distances["", ""], rel=1e-4) and distances["none", ""] > 0
