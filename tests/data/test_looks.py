"""Faces by look: two domains that share no face."""

from __future__ import annotations

import pytest
import torch

from editkit.data.looks import LookDataset, Looks
from editkit.data.toyworld.world import face_at, face_of
from editkit.errors import UsageError


def test_each_item_has_the_look_of_its_domain_and_no_face_is_shown_as_both():
    both = LookDataset("train", 60, kinds=("masculine", "feminine"))
    items = [both[k] for k in range(60)]
    assert [item["domain"] for item in items] == [0, 1] * 30
    assert all(item["factors"]["look"] == both.kinds[item["domain"]] for item in items)
    assert len({item["image"].numpy().tobytes() for item in items}) == 60
    alone = LookDataset("train", 30, kinds=("feminine",))
    assert all(torch.equal(alone[k]["image"], items[2 * k + 1]["image"]) for k in range(30)), "the same faces without the others"


def test_faces_of_a_look_are_those_of_the_split_where_these_have_it():
    faces = [face_at("test", k) for k in range(50)]
    kept = [face == face_of("feminine", "test", k) for k, face in enumerate(faces)]
    assert kept == [face.look == "feminine" for face in faces] and 10 < sum(kept) < 40


def test_wrong_looks_are_refused():
    with pytest.raises(UsageError, match=r"kinds has an unknown 'feminin'. Did you mean 'feminine'"):
        Looks(kinds=["feminin"]).dataset("train")
    with pytest.raises(UsageError, match="needs one or more"):
        LookDataset("train", 4, kinds=["feminine", "feminine"])
    with pytest.raises(UsageError, match="no face looks 'old'"):
        face_of("old", "train", 0)
