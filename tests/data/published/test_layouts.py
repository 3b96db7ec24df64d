"""Each published layout as its owners write it: odd cases, and what is said of broken files."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from editkit.app.check import check_data
from editkit.data.photo import photo_from_pil
from editkit.data.published.coco import Coco
from editkit.data.published.instructpix2pix import InstructPix2Pix
from editkit.data.published.known import recognised
from editkit.data.published.magicbrush import MagicBrush, region
from editkit.data.published.openimages import OpenImages
from editkit.data.published.rle import decode, encode, unpacked
from editkit.data.published.tables import Table
from editkit.data.published.webdataset import WebDataset
from editkit.errors import UsageError, UserError

RED, BLUE = (220, 30, 30), (30, 30, 220)


def png(colour, size=(16, 16)):
    data = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(data, "PNG")
    return data.getvalue()


def table(path, rows, group=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def tar(path, files, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def edit(number, **other):
    row = {"original_image": {"bytes": png((number, 0, 0)), "path": None}, "edit_prompt": f"do {number}"}
    return {**row, "edited_image": {"bytes": png((0, number, 0)), "path": None}, **other}


def test_masks_agree_with_the_reference_of_coco():
    """Made with pycocotools 2.0: a mask with a hole in its packed form, and the area of two polygons' union."""
    mask = np.zeros((12, 40), dtype=bool)
    mask[3:9, 5:30], mask[5:7, 10:12], mask[0, 0] = True, False, True
    packed = "01n15XN00000000LL040L0440000000000000000000000000000000000e3"
    assert np.array_equal(decode({"size": [12, 40], "counts": packed}, (40, 12)), mask)
    assert unpacked(packed) == encode(mask)["counts"] and np.array_equal(decode(encode(mask), (40, 12)), mask)
    square, triangle = [2, 2, 6, 2, 6, 6, 2, 6], [10.3, 1.2, 20.7, 3.4, 15.1, 10.9]
    assert decode([square], (40, 12)).sum() == 16 and decode([square], (40, 12))[2:6, 2:6].all()
    assert abs(int(decode([square, triangle], (40, 12)).sum()) - 59) <= 6  # it counts more of the pixels on the border
    with pytest.raises(UserError, match="run lengths"):
        decode(encode(mask), (39, 12))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "annotations/instances_train2017.json").write_text("{"), "not JSON"),
        (lambda root: (root / "annotations/instances_train2017.json").write_text("{}"), "'categories' is missing"),
        (lambda root: (root / "train2017").rename(root / "pictures"), "the pictures are missing"),
        (lambda root: (root / "annotations/captions_train2017.json").write_text("{}"), "'annotations' is missing"),
    ],
)
def test_coco_that_lacks_something_is_one_line(tmp_path, change, message):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    content = {"images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}], "categories": [], "annotations": []}
    content["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}]
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    assert len(Coco(tmp_path).train_dataset()) == 1
    with pytest.raises(UserError, match="between 90% and 100%"):
        Coco(tmp_path, smallest=0.9, largest=1).train_dataset()
    change(tmp_path)
    with pytest.raises(UserError, match=message) as told:
        Coco(tmp_path).train_dataset()
    assert "\n" not in str(told.value)


def test_one_of_several_captions_is_drawn_in_training_alone(tmp_path):
    for part in ("train2017", "val2017"):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / part).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / part / "a.png")
        images = [{"id": 1, "file_name": "a.png", "width": 16, "height": 16}]
        things = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8]}]
        texts = [{"image_id": 1, "caption": f" text {k}\n"} for k in range(5)]
        instances = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "dog"}]}
        (tmp_path / f"annotations/instances_{part}.json").write_text(json.dumps(instances))
        (tmp_path / f"annotations/captions_{part}.json").write_text(json.dumps({"annotations": texts}))
    data = Coco(tmp_path, 16)
    torch.manual_seed(0)
    assert {data.train_dataset()[0]["caption"] for _ in range(40)} == {f"text {k}" for k in range(5)}
    assert {data.validation_dataset()[0]["caption"] for _ in range(9)} == {"text 0"}


def test_openimages_as_its_releases_name_and_order_it(tmp_path):
    """Release 6 of training: another file name, more columns, a head on the classes, pictures in sixteen folders."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train_a").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "train_a/a0.jpg")
    head = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,XClick1X"
    )
    rows = [
        "a0,xclick,/m/01,1,0.0,0.5,0.2,1.0,0,0,0,0,0,0.1",
        "a0,xclick,/m/02,1,0.5,1.0,0.0,0.5,0,0,1,0,0,0.1",  # a group
        "a0,xclick,/m/03,1,0.6,0.61,0.0,0.5,0,0,0,0,0,0.1",  # too small
        "a0,xclick,/m/04",  # cut off
    ]
    (tmp_path / "annotations/oidv6-train-annotations-bbox.csv").write_text("\n".join([head, *rows]))
    (tmp_path / "annotations/oidv6-class-descriptions-boxable.csv").write_text('LabelName,DisplayName\n/m/01,"Dog, small"\n')
    with pytest.warns(UserWarning, match="1 rows of"):
        dataset = OpenImages(tmp_path, 20, fit="resize").train_dataset()
    item = dataset[0]
    assert item["object_captions"] == ("Dog, small",) and item["boxes"][0].tolist() == [0, 4, 10, 20]
    assert [finding.kind for finding in check_data(tmp_path)] == ["note", "bad", "note", "note", "ok"]
    table_path = tmp_path / "annotations/oidv6-train-annotations-bbox.csv"
    table_path.write_text(table_path.read_text().replace("XMax", "Xmax"))
    with pytest.raises(UserError, match="no column XMax; its columns are: ImageID"):
        OpenImages(tmp_path).train_dataset()
    (tmp_path / "annotations/oidv6-class-descriptions-boxable.csv").unlink()
    with pytest.raises(UserError, match="there is no class-descriptions-boxable.csv"):
        OpenImages(tmp_path).train_dataset()


def pix2pix(root, name, seeds, text="do it"):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "prompt.json").write_text(json.dumps({"caption": "a", "edit": text, "output": "b"}))
    for k, seed in enumerate(seeds):
        for end in (0, 1):
            Image.new("RGB", (16, 16), (60 * k, 0, 200 * end)).save(folder / f"{seed}_{end}.jpg")


def test_instructpix2pix_draws_a_pair_in_training_and_splits_by_position(tmp_path):
    for k in range(20):
        pix2pix(tmp_path, f"shard-0{k % 2}/{k:07d}", ["11", "22"], text=f"do {k}")
    names = [f"shard-0{k % 2}/{k:07d}" for k in range(20)]
    (tmp_path / "seeds.json").write_text(json.dumps([[name, ["11", "22"]] for name in names]))
    data = InstructPix2Pix(tmp_path, 16)
    assert [len(data.dataset(split)) for split in ("train", "validation", "test")] == [18, 1, 1]
    assert data.test_dataset()[0]["instruction"] == "do 19" and data.test_dataset()[0]["key"] == names[19]
    torch.manual_seed(0)
    shown = {round(float(data.train_dataset()[0]["image"][0].mean()), 1) for _ in range(20)}
    held = {round(float(data.validation_dataset()[0]["image"][0].mean()), 1) for _ in range(20)}
    assert len(shown) == 2 and len(held) == 1
    item = data.train_dataset()[0]
    assert (item["target"] - item["image"])[2].mean() > 1 and item["caption"] == "a" and item["target_caption"] == "b"
    (tmp_path / "seeds.json").unlink()
    assert [item["key"] for item in InstructPix2Pix(tmp_path, 16, 0, 0).train_dataset()] == sorted(names)


def test_instructpix2pix_says_what_is_broken(tmp_path):
    for k in range(3):
        pix2pix(tmp_path, f"{k:07d}", ["5"])
    (tmp_path / "0000001/prompt.json").write_text('{"input": "a"}')
    (tmp_path / "0000002/5_1.jpg").unlink()
    bad = [finding.text for finding in check_data(tmp_path) if finding.kind == "bad"]
    assert len(bad) == 2 and 'no "edit"' in bad[0] and "there is no file" in bad[1] and "5_1.jpg" in bad[1]
    (tmp_path / "seeds.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="seeds.json is not"):
        InstructPix2Pix(tmp_path).train_dataset()
    (tmp_path / "seeds.json").write_text('[["../elsewhere", ["1"]]]')
    with pytest.raises(UserError, match="none of the 1"), pytest.warns(UserWarning, match="leads out of the folder"):
        InstructPix2Pix(tmp_path, validation=0, test=0).train_dataset()[0]
    with pytest.raises(UsageError, match="leave nothing to train on"):
        InstructPix2Pix(tmp_path, validation=0.5, test=0.5).train_dataset()


def test_rows_are_read_a_group_at_a_time_and_named_by_file(tmp_path, monkeypatch):
    for part in (0, 1):
        table(tmp_path / f"data/train-0000{part}-of-00002-abc.parquet", [edit(10 * part + k) for k in range(5)], group=2)
    data = InstructPix2Pix(tmp_path, 16, validation=0.1, test=0.2)
    assert data.train_dataset().blocks == [2, 2, 1, 2] and data.test_dataset().blocks == [1, 1]
    reads = []
    original = parquet.ParquetFile.read_row_group

    def counted(self, *arguments, **options):
        reads.append(arguments[0])
        return original(self, *arguments, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    items = list(data.train_dataset())
    assert reads == [0, 1, 2, 0]
    assert [item["instruction"] for item in items] == [f"do {k}" for k in (0, 1, 2, 3, 4, 10, 11)]
    assert items[5]["key"] == "train-00001-of-00002-abc.parquet/000000" and items[0]["caption"] == ""
    assert data.validation_dataset()[0]["instruction"] == "do 12"


def test_splits_with_files_of_their_own_take_nothing_from_training(tmp_path):
    table(tmp_path / "data/train-0.parquet", [edit(k) for k in range(10)])
    table(tmp_path / "data/validation-0.parquet", [edit(100)])
    data = InstructPix2Pix(tmp_path, 16, validation=0.5, test=0.1)
    assert [len(data.dataset(split)) for split in ("train", "validation", "test")] == [9, 1, 1]


def test_parquet_that_lacks_something_is_one_line(tmp_path):
    table(tmp_path / "train-0.parquet", [{"original_image": png(RED), "prompt": "x"}])
    with pytest.raises(UserError, match="no column edit_prompt; its columns are: original_image, prompt"):
        InstructPix2Pix(tmp_path).train_dataset()
    table(tmp_path / "train-0.parquet", [edit(1), edit(2, edited_image=None), edit(3, edit_prompt=None)])
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1 cut off")
    findings = check_data(tmp_path)
    bad = [finding.text for finding in findings if finding.kind == "bad"]
    assert len(bad) == 2 and "train-1.parquet cannot be read" in bad[0] and "000001, edited_image is empty" in bad[1]
    with pytest.warns(UserWarning, match="1 left out as broken"):
        InstructPix2Pix(tmp_path, 16, 0, 0).train_dataset()
    with pytest.raises(UserError, match="cannot be read"):
        Table([tmp_path / "train-1.parquet"], [])


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    table(tmp_path / "train-0.parquet", [edit(1)])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'editkit\[parquet\]'"):
        InstructPix2Pix(tmp_path).train_dataset()
    assert recognised(tmp_path).name == "instructpix2pix"


def test_the_hole_of_magicbrush_is_where_its_picture_is_transparent_or_turned_white():
    source = Image.new("RGB", (16, 16), BLUE)
    source.paste((255, 255, 255), (0, 0, 16, 4))  # white before the edit, too
    hole = source.copy().convert("RGBA")
    hole.paste((255, 255, 255, 0), (4, 8, 8, 12))
    exact = np.zeros((16, 16), dtype=bool)
    exact[8:12, 4:8] = True
    image = photo_from_pil(source)
    assert np.array_equal(region(photo_from_pil(hole), image), exact)
    white = Image.alpha_composite(Image.new("RGBA", (16, 16), (255, 255, 255, 255)), hole).convert("RGB")
    assert np.array_equal(region(photo_from_pil(white), image), exact)
    with pytest.raises(UserError, match="has no hole"):
        region(image, image)


def test_magicbrush_whose_mask_and_target_have_another_size(tmp_path):
    hole = Image.new("RGBA", (32, 32), (*BLUE, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 16, 32))
    data = io.BytesIO()
    hole.save(data, "PNG")
    row = {"img_id": "7", "turn_index": 2, "source_img": {"bytes": png(BLUE), "path": None}, "instruction": "paint it red"}
    row |= {"mask_img": {"bytes": data.getvalue(), "path": None}, "target_img": {"bytes": png(RED, (32, 32)), "path": None}}
    wide = {**row, "target_img": {"bytes": png(RED, (32, 16)), "path": None}}
    table(tmp_path / "data/train-0.parquet", [row, wide])
    item = MagicBrush(tmp_path, 16).train_dataset()[0]
    assert item["mask"][0, :, :8].all() and not item["mask"][0, :, 8:].any()
    assert torch.allclose(item["target"][:, 0, 0], torch.tensor(RED) / 127.5 - 1, atol=1e-6)
    (bad,) = [finding.text for finding in check_data(tmp_path) if finding.kind == "bad"]
    assert "7, turn 2" in bad and "the two need the same shape" in bad
    with pytest.raises(UserError, match=r"no dev-\*.parquet"):
        MagicBrush(tmp_path).validation_dataset()


def test_shards_of_other_makers_are_read_in_place(tmp_path):
    """Folders in the names, upper case, samples that failed to download, names of one's own."""
    tar(tmp_path / "00001.tar", {"set/b.JPG": png(RED), "set/b.txt": b"a boat\n", "set/c.json": b'{"status": "failed"}'})
    first = {"a.1.png": png(BLUE), "a.edited.png": png(RED), "a.json": b'{"caption": "sea", "instruction": "boat", "n": 1}'}
    tar(tmp_path / "00000.tar", first)
    data = WebDataset(tmp_path, 16, 0, 0, names={"image": "1.png", "target": "edited.png"})
    (item,) = data.train_dataset()
    assert item["key"] == "00000.tar/a" and (item["caption"], item["instruction"]) == ("sea", "boat")
    assert item["target"][0].mean() > item["image"][0].mean()
    usual = WebDataset(tmp_path, 16, 0, 0).train_dataset()
    assert [item["key"] for item in usual] == ["00001.tar/set/b"] and usual[0]["caption"] == "a boat"
    assert usual.source.notes == ("2 samples without a picture are left out",)
    with pytest.raises(UsageError, match="Did you mean 'target'"):
        WebDataset(tmp_path, names={"targets": "x.png"})


def test_references_and_masks_in_shards(tmp_path):
    tar(tmp_path / "train/0.tar", {"a.png": png(BLUE), "a.mask.png": png((255, 255, 255)), "a.reference.png": png(RED, (8, 9))})
    tar(tmp_path / "test/0.tar", {"b.png": png(RED)})
    data = WebDataset(tmp_path, 16)
    item = data.train_dataset()[0]
    assert item["mask"].all() and [reference.shape for reference in item["references"]] == [(3, 16, 16)]
    assert [item["key"] for item in data.test_dataset()] == ["test/0.tar/b"]
    with pytest.raises(UserError, match="no shards of validation"):
        data.validation_dataset()


def test_shards_that_are_cut_off_or_packed_give_what_they_hold(tmp_path):
    tar(tmp_path / "0.tar", {f"{k}.png": png((k, 0, 0)) for k in range(3)})
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:1800])
    tar(tmp_path / "1.tar", {"3.png": png(RED), "3.json": b"{", "4.png": b"", "5.png": png(BLUE)})
    tar(tmp_path / "2.tar", {"6.png": png(RED)}, mode="w:gz")
    findings = check_data(tmp_path)
    bad = [finding.text for finding in findings if finding.kind == "bad"]
    assert any("2.tar is no plain tar" in text for text in bad) and any("1.tar/3.json is not JSON" in text for text in bad)
    assert any("1.tar/4.png is empty" in text for text in bad) and any("0.tar" in text and "cut off" in text for text in bad)
    with pytest.warns(UserWarning, match="left out as broken"):
        data = WebDataset(tmp_path, 16, 0, 0).train_dataset()
    with pytest.warns(UserWarning, match="left out"):
        keys = {data[k]["key"] for k in range(len(data))}
    assert {"0.tar/0", "1.tar/5"} <= keys and "2.tar/6" not in keys and "1.tar/3" not in keys
    (tmp_path / "0.tar").unlink()
    (tmp_path / "1.tar").unlink()
    with pytest.raises(UserError, match="2.tar is no plain tar"):
        WebDataset(tmp_path, 16, 0, 0).train_dataset()


@pytest.mark.parametrize("options", [{"size": 4}, {"fit": "squeeze"}])
def test_wrong_options_are_usage_errors(options):
    for kind in (Coco, OpenImages, InstructPix2Pix, MagicBrush, WebDataset):
        with pytest.raises(UsageError, match=f"data.{next(iter(options))}"):
            kind("anywhere", **options)
