"""Questions about styles: the same face in the style scores best, doing nothing and another face in the style do not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from editkit.app.artefacts import choose
from editkit.app.questions import questions_named
from editkit.app.questions.base import pictures
from editkit.data.toyworld import styled
from editkit.data.toyworld.styled import in_style, styled_at
from editkit.errors import UsageError, UserError
from tests.app.questions.perfect import Perfect

ASKED, COUNT = questions_named("styles"), 6


@pytest.fixture(scope="module")
def cases():
    return ASKED.cases(ASKED.find("pencil"), "test", COUNT, size=64)


@pytest.fixture(scope="module")
def judges():
    faces = [styled_at("test", k, "plain") for k in range(2 * COUNT)]
    shown = [in_style(face, style) for face in faces for style in ("plain", "pencil", "neon")]
    dino = SimpleNamespace(keys=lambda images: images.flatten(2).transpose(1, 2))
    return SimpleNamespace(oracle=Perfect(styled, shown, pictures(styled.render, shown)), dino=dino)


def scores(judges, cases, images):
    return {name: value.mean().item() for name, value in ASKED.score(judges, cases, images).figures.items()}


def test_the_exact_answer_is_a_full_success(judges, cases):
    found = scores(judges, cases, cases.truth)
    assert (found["success"], found["preservation"], found["score"]) == (1.0, 1.0, 1.0) and found["psnr"] >= 60
    assert found["structure"] > 0, "a drawing's patches are less alike than a picture's"


def test_doing_nothing_another_style_and_another_face_are_not(judges, cases):
    nothing = scores(judges, cases, cases.images)
    assert nothing["success"] == nothing["structure"] == 0 and nothing["preservation"] == 1
    assert scores(judges, cases, pictures(styled.render, [styled_at("test", k, "neon") for k in range(COUNT)]))["success"] == 0
    others = scores(judges, cases, pictures(styled.render, [styled_at("test", k + COUNT, "pencil") for k in range(COUNT)]))
    assert others["success"] == 1 and others["preservation"] < 0.7


def test_what_a_style_hides_does_not_count(judges, cases):
    kept = ASKED.score(judges, cases, cases.truth).kept
    assert "look" in kept and all(torch.isnan(kept[name]).all() for name in styled.COLOURS & kept.keys())


def test_texts_and_names(cases):
    assert cases.inputs(0) == {"source_prompt": "a face", "prompt": "a pencil drawing of a face"}
    assert cases.keys[3] == "faces/test/000003" and set(ASKED.edits()) == set(styled.STYLES) - {"plain"}
    with pytest.raises(UsageError, match="no edit of the styles is called 'cubism'"):
        ASKED.find("cubism")


def test_weights_for_a_style_picture_are_asked_for_that_style_alone(tmp_path):
    for name in ("neon", "pencil", "portrait"):
        save_file({"a": np.zeros(1)}, tmp_path / f"{name}.safetensors", {"editkit": json.dumps({"style_picture": name})})
    asked = lambda *names: [  # noqa: E731
        edit.name for edit in ASKED.usual({"stylediffusion": ("none", [str(tmp_path / f"{name}.safetensors") for name in names])})
    ]
    assert asked("neon", "pencil") == ["pencil", "neon"] and asked("neon") == ["neon"]
    assert len(ASKED.usual({"diffstyler": ("none", [])})) == len(ASKED.edits())
    with pytest.raises(UserError, match="'portrait', which is no edit of the toy faces"):
        asked("portrait")
    chosen = choose(
        "none", [str(tmp_path / "neon.safetensors"), str(tmp_path / "pencil.safetensors")], prompt=ASKED.find("neon").prompt
    )
    assert [part.path.stem for part in chosen] == ["neon"]


def test_distances_compare_with_other_faces_in_the_style(judges, cases):
    with torch.no_grad():
        found = {(name, ""): judges.oracle.features(images) for name, images in (("truth", cases.truth), ("none", cases.images))}
    distances = ASKED.distances(judges, cases, "test", found)
    assert distances["truth", ""] == pytest.approx(distances["", ""], rel=1e-4) and distances["none", ""] > 0
