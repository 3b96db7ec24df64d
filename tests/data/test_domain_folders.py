"""Folders of several domains: AFHQ's layout and a plain one, every picture with the number of its domain."""

from __future__ import annotations

import pytest
from PIL import Image

from editkit.data.domain_folders import DomainFolders
from editkit.errors import UsageError, UserError


def paint(home, counts, colour=0):
    for name, count in counts.items():
        (home / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", (20, 16), (colour + k, 90, 200)).save(home / name / f"{k:03d}.png")


def test_afhqs_layout_with_val_for_validation_and_test(tmp_path):
    paint(tmp_path / "train", {"cat": 5, "dog": 3, "wild": 2})
    paint(tmp_path / "val", {"cat": 2, "dog": 1})
    data = DomainFolders(tmp_path, ["dog", "cat"], size=16)
    train = data.dataset("train")
    items = [train[k] for k in range(len(train))]
    assert [item["domain"] for item in items] == [0] * 3 + [1] * 5, "in the order asked for, wild left out"
    assert [item["index"] for item in items] == list(range(8)) and len({item["key"] for item in items}) == 8
    assert items[3]["key"].startswith("cat/") and items[0]["image"].shape == (3, 16, 16)
    assert train[-1]["key"] == items[-1]["key"]
    with pytest.raises(IndexError):
        train[8]
    for split in ("validation", "test"):
        assert [data.dataset(split)[k]["domain"] for k in range(3)] == [0, 1, 1]
    paint(tmp_path / "test", {"cat": 4, "dog": 4})
    assert len(data.dataset("test")) == 8 and len(data.dataset("validation")) == 3


def test_plain_folders_are_split_by_a_hash(tmp_path):
    paint(tmp_path, {"cat": 60, "dog": 60})
    data = DomainFolders(tmp_path, ["cat", "dog"], size=16)
    keys = {split: {data.dataset(split)[k]["key"] for k in range(len(data.dataset(split)))} for split in ("train", "test")}
    assert not keys["train"] & keys["test"] and len(keys["train"]) > 90


def test_what_is_missing_is_named(tmp_path):
    paint(tmp_path / "train", {"cat": 2})
    with pytest.raises(UserError, match="no pictures of 'dog'"):
        DomainFolders(tmp_path, ["cat", "dog"]).dataset("train")
    for domains in (["cat"], ["cat", "cat"]):
        with pytest.raises(UsageError, match="two folders or more"):
            DomainFolders(tmp_path, domains)
