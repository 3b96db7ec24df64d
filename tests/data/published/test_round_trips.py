"""Toy scenes written in each published layout and read back: the same pictures, masks, boxes and texts."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.app.check import check_data
from editkit.data.items import collate
from editkit.data.layout import render
from editkit.data.published.coco import Coco
from editkit.data.published.instructpix2pix import InstructPix2Pix
from editkit.data.published.known import LAYOUTS, recognised
from editkit.data.published.magicbrush import MagicBrush
from editkit.data.published.openimages import OpenImages
from editkit.data.published.webdataset import WebDataset
from editkit.data.published.write import WRITERS, find_writer
from editkit.data.scene_pairs import SceneEdits
from editkit.data.scenes import SceneDataset
from editkit.errors import UsageError, UserError

SIZE, COUNT = 32, 6
EVERY = {"smallest": 0.0, "largest": 1.0, "objects": 4}
PAIRS = {
    "instructpix2pix": (InstructPix2Pix, {"validation": 0, "test": 0}),
    "instructpix2pix-parquet": (InstructPix2Pix, {"validation": 0, "test": 0}),
    "magicbrush": (MagicBrush, {}),
    "webdataset": (WebDataset, {"validation": 0, "test": 0}),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function that writes a layout once and returns its folder; tests must not change it."""
    root = tmp_path_factory.mktemp("layouts")
    return lambda layout: render("scenes", COUNT, root / layout, size=SIZE, layout=layout)


def near(found, exact, tolerance):
    """Say whether pictures in [-1, 1] agree: the mean and the largest difference, in grey levels."""
    difference = (found - exact).abs() * 127.5
    return difference.mean() <= tolerance and difference.max() <= 25 * tolerance


@pytest.mark.parametrize("name", ["coco", "openimages"])
def test_scenes_come_back_as_objects(written, name):
    module = {"coco": Coco, "openimages": OpenImages}[name](written(name), SIZE, **EVERY)
    items, exact = module.train_dataset(), SceneDataset("train", COUNT, SIZE)
    assert len(items) == COUNT
    for item, scene in zip(items, exact, strict=True):
        assert near(item["image"], scene["image"], 2) and not near(item["image"].flip(2), scene["image"], 2)
        assert torch.equal(item["boxes"], scene["boxes"])
        assert item["caption"] == scene["caption"] and item["object_captions"] == scene["object_captions"]
        if name == "coco":
            assert torch.equal(item["object_masks"], scene["object_masks"])
        else:  # boxes alone are known
            covered = [(left, top, right, bottom) for left, top, right, bottom in scene["boxes"].tolist()]
            for mask, (left, top, right, bottom) in zip(item["object_masks"], covered, strict=True):
                assert mask.sum() == (right - left) * (bottom - top) == mask[top:bottom, left:right].sum()
    batch = collate(list(items))
    assert batch["object_masks"].shape == (COUNT, 4, SIZE, SIZE) and batch["boxes"].shape == (COUNT, 4, 4)


@pytest.mark.parametrize("name", PAIRS)
def test_edits_come_back_as_pairs(written, name):
    kind, options = PAIRS[name]
    items, exact = kind(written(name), SIZE, **options).train_dataset(), SceneEdits("train", COUNT, SIZE)
    assert len(items) == COUNT
    for item, edit in zip(items, exact, strict=True):
        tolerance = 2 if name == "instructpix2pix" else 0
        assert near(item["image"], edit["image"], tolerance) and near(item["target"], edit["target"], tolerance)
        assert item["instruction"] == edit["instruction"]
        if name != "magicbrush":
            assert item["caption"] == edit["caption"] and item["target_caption"] == edit["target_caption"]
        if name in ("magicbrush", "webdataset"):
            assert torch.equal(item["mask"], edit["mask"])
        else:
            assert item["mask"] is None
    assert collate(list(items))["target"].shape == (COUNT, 3, SIZE, SIZE)


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_recognised_and_sound(written, name):
    folder = written(name)
    assert recognised(folder).name == name.removesuffix("-parquet")
    findings = check_data(folder)
    assert {finding.kind for finding in findings} == {"note", "ok"}
    assert f"{COUNT} samples of {recognised(folder).title}" in findings[-1].text


@pytest.mark.parametrize("name", WRITERS)
def test_items_do_not_depend_on_the_process(written, name):
    """A copy as a worker process gets it reads the same items, and every item is read once whatever the workers."""
    module = recognised(written(name)).opened(written(name), SIZE)
    dataset = module.train_dataset()
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(a["image"], b["image"]) and a["key"] == b["key"] for a, b in zip(dataset, copy, strict=True))
    if name == "magicbrush":
        module.num_workers, module.batch_size = 2, 2
        keys = [key for batch in module.train_dataloader() for key in batch["key"]]
        assert sorted(keys) == sorted(item["key"] for item in dataset) and len(set(keys)) == len(keys)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_folder_of_another_layout_says_what_it_looks_like(written, tmp_path, layout):
    other = "magicbrush" if layout.name != "magicbrush" else "coco"
    with pytest.raises(UserError) as told:
        layout.opened(written(other), SIZE).train_dataset()
    assert f"use data={other}" in str(told.value) and layout.expected in str(told.value)
    with pytest.raises(UserError, match="none of the layouts"):
        layout.opened(tmp_path, SIZE).train_dataset()
    with pytest.raises(UserError, match="there is no folder"):
        layout.opened(tmp_path / "nowhere", SIZE).train_dataset()


def test_splits_share_a_folder_where_the_layout_has_splits(tmp_path):
    for name in ("coco", "openimages", "magicbrush"):
        folder = tmp_path / name
        for split in ("train", "validation"):
            render("scenes", 2, folder, split=split, size=16, layout=name)
        module = recognised(folder).opened(folder, 16)
        for split in ("train", "validation"):
            captions = SceneDataset(split, 2, 16), SceneEdits(split, 2, 16)
            found = module.dataset(split)[0]
            assert near(found["image"], captions[name == "magicbrush"][0]["image"], 2)
        with pytest.raises(UserError):
            module.dataset("test")
        with pytest.raises(UserError, match="choose another folder"):
            render("scenes", 2, folder, split="test", size=16, layout="instructpix2pix-parquet")


def test_more_can_be_written_and_a_mistake_writes_nothing(tmp_path):
    for name in ("coco", "webdataset"):
        for count in (2, 4, 3):
            render("scenes", count, tmp_path / name, size=16, layout=name)
    found = json.loads((tmp_path / "coco/annotations/instances_train2017.json").read_text())
    assert len(found["images"]) == len(list((tmp_path / "coco/train2017").iterdir())) == 4
    assert len(WebDataset(tmp_path / "webdataset", 16, 0, 0).train_dataset()) == 4
    for arguments, message in [
        (("cocoo", "scenes", "train"), "Did you mean 'coco'"),
        (("coco", "faces", "train"), "--domain scenes"),
        (("coco", "scenes", "heldout"), "--split train, validation, test"),
    ]:
        with pytest.raises(UsageError, match=message):
            find_writer(*arguments)
    with pytest.raises(UsageError):
        render("faces", 2, tmp_path / "new", layout="coco")
    assert not (tmp_path / "new").exists()


def test_faces_fit_into_shards(tmp_path):
    render("faces", 3, tmp_path, size=16, layout="webdataset")
    items = WebDataset(tmp_path, 16, 0, 0).train_dataset()
    assert [item["caption"] != "" for item in items] == [True] * 3
    assert "target" not in collate(list(items)) and "mask" not in collate(list(items))


def test_one_broken_picture_is_left_out_with_a_warning_and_the_rest_is_read(tmp_path):
    render("scenes", 3, tmp_path, size=16, layout="coco")
    (tmp_path / "train2017/000000000001.jpg").write_bytes(b"\xff\xd8\xff cut")
    (tmp_path / "train2017/000000000002.jpg").unlink()
    dataset = Coco(tmp_path, 16, **EVERY).train_dataset()
    with pytest.warns(UserWarning, match="left out, [12] of 3"):
        keys = [dataset[k]["key"] for k in range(3)]
    assert keys == ["train2017/000000000000.jpg"] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad = [finding.text for finding in check_data(tmp_path) if finding.kind == "bad"]
    assert len(bad) == 2 and "000000000001.jpg is damaged" in bad[0] and "there is no file" in bad[1]


def test_pictures_of_any_shape_are_cut_about_the_largest_object(tmp_path):
    """A wide picture whose object lies at its right end: the item shows the object, box and mask where it is seen."""
    picture = np.full((40, 100, 3), 30, dtype=np.uint8)
    picture[10:30, 80:100] = 220
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    Image.fromarray(picture).save(tmp_path / "train2017/a.png")
    box, corners = [80, 10, 20, 20], [[80, 10, 100, 10, 100, 30, 80, 30]]
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": box, "segmentation": corners, "iscrowd": 0}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 100, "height": 40}],
        "annotations": [annotation, {**annotation, "id": 2, "bbox": [0, 0, 20, 20], "iscrowd": 1}],
        "categories": [{"id": 3, "name": "lamp"}],
    }
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    item = Coco(tmp_path, 40).train_dataset()[0]
    assert item["boxes"][0].tolist() == [20, 10, 40, 30] and item["object_captions"] == ("lamp",)
    bright = item["image"].mean(0) > 0
    assert torch.equal(bright, item["object_masks"][0] > 0) and bright.sum() == 400
    half = Coco(tmp_path, 20, fit="resize").train_dataset()[0]
    assert half["boxes"][0].tolist() == [16, 5, 20, 15]
    assert half["object_masks"][0].sum() == 4 * 10 == half["object_masks"][0, 5:15, 16:].sum()
