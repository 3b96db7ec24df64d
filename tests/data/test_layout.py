"""The rendered folder: complete, resumable, readable by the folder module."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from editkit.data.folder import Folder
from editkit.data.items import image_array
from editkit.data.layout import render
from editkit.data.toyworld.faces import PARTS, Face
from editkit.data.toyworld.faces import render as render_face
from editkit.data.toyworld.world import sample_at
from editkit.errors import UsageError, UserError


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_layout_holds_what_the_samples_say(tmp_path):
    folder = render("faces", 5, tmp_path / "out", split="test", size=32)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == [f"images/{k:06d}.png" for k in range(5)]
    for k, line in enumerate(lines):
        sample = sample_at("test", k, 32)
        assert np.array_equal(np.asarray(Image.open(folder / line["file_name"])), sample.image)
        labels = Image.open(folder / "labels" / f"{k:06d}.png")
        assert labels.mode == "P" and np.array_equal(np.asarray(labels), sample.labels)
        assert line["text"] == sample.caption.text and line["factors"] == sample.factors
        assert set(line["hidden"]) == {name for name, shown in sample.visibility.items() if not shown}
        assert np.array_equal(render_face(Face(**line["rendered_from"]), 32)[0], sample.image)
    assert json.loads((folder / "dataset.json").read_text())["parts"] == list(PARTS)


def test_an_interrupted_call_goes_on_and_ends_the_same(tmp_path):
    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render("faces", 6, tmp_path / "a", size=16, on_done=stop)
    assert not (tmp_path / "a/metadata.jsonl").exists() and len(list((tmp_path / "a/images").iterdir())) == 3
    kept = (tmp_path / "a/images/000000.png").stat().st_mtime_ns
    render("faces", 6, tmp_path / "a", size=16)
    assert (tmp_path / "a/images/000000.png").stat().st_mtime_ns == kept
    render("faces", 6, tmp_path / "b", size=16)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_more_pictures_are_added_and_none_removed(tmp_path):
    render("faces", 2, tmp_path, size=16)
    render("faces", 4, tmp_path, size=16)
    render("faces", 3, tmp_path, size=16)
    assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == len(list((tmp_path / "images").iterdir())) == 4


def test_other_contents_are_not_touched(tmp_path):
    render("faces", 2, tmp_path / "a", size=16)
    before = contents(tmp_path / "a")
    with pytest.raises(UserError, match="size 16, not 32"):
        render("faces", 2, tmp_path / "a", size=32)
    with pytest.raises(UserError, match="split train, not test"):
        render("faces", 2, tmp_path / "a", size=16, split="test")
    assert contents(tmp_path / "a") == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own/holiday.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        render("faces", 2, tmp_path / "own")
    assert list(contents(tmp_path / "own")) == ["holiday.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domain": "face"}, "Did you mean 'faces'"),
        ({"split": "tests"}, "Did you mean 'test'"),
        ({"n": 0}, "at least 1"),
        ({"size": 4}, "8 pixels"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        render(**{"domain": "faces", "n": 1, "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_reported(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        render("faces", 1, tmp_path / "out")


def test_the_folder_module_reads_it_back(tmp_path):
    render("faces", 6, tmp_path, split="test", size=32)
    data = Folder(tmp_path, 32)
    items = [item for d in (data.train_dataset(), data.validation_dataset(), data.test_dataset()) for item in d]
    assert len(items) == 6
    for item in items:
        sample = sample_at("test", int(item["key"][-10:-4]), 32)
        assert np.array_equal(image_array(item["image"]), sample.image)
        assert np.array_equal(item["labels"].numpy(), sample.labels)
        assert item["caption"] == sample.caption.text and item["factors"] == sample.factors
        assert item["visible"] == sample.visibility
