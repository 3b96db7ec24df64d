"""A user's own folder: what is found, how it is paired and split, and what happens to bad files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.data.folder import Folder, FolderDataset
from editkit.data.items import collate
from editkit.data.listing import fraction, full_check, listing, quick_check
from editkit.errors import UsageError, UserError


def save(path, size=(24, 24), colour=(200, 30, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def noisy(path, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


def some(root, count=6):
    for k in range(count):
        save(root / f"{k}.png")
    return root


def everything(data):
    return [item for d in (data.train_dataset(), data.validation_dataset(), data.test_dataset()) for item in d]


def test_pictures_of_all_formats_and_sub_folders_are_found(tmp_path):
    for name in ("a.png", "b.JPG", "sub/c.webp", "sub/deeper/d.bmp", "e.tiff", ".hidden.png", ".cache/f.png"):
        save(tmp_path / name, **({"format": "JPEG"} if name.endswith("JPG") else {}))
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [e.key for e in listing(tmp_path).entries] == ["a.png", "b.JPG", "e.tiff", "sub/c.webp", "sub/deeper/d.bmp"]


@pytest.mark.parametrize("images", ["", "images"])
def test_companions_are_paired_by_stem(tmp_path, images):
    save(tmp_path / images / "a.png")
    save(tmp_path / images / "sub/b.jpg")
    save(tmp_path / images / "c.png")
    save(tmp_path / "masks/a.jpg", colour=(255, 255, 255))
    save(tmp_path / "references/sub/b.png")
    save(tmp_path / "references/c/1.png")
    save(tmp_path / "references/c/2.png")
    save(tmp_path / "labels/nobody.png")
    found = listing(tmp_path)
    entries = {entry.key.split("/")[-1]: entry for entry in found.entries}
    assert sorted(entries) == ["a.png", "b.jpg", "c.png"]
    assert [path.name for path in entries["a.png"].files("masks")] == ["a.jpg"] and not entries["b.jpg"].files("masks")
    assert [path.name for path in entries["b.jpg"].files("references")] == ["b.png"]
    assert [path.name for path in entries["c.png"].files("references")] == ["1.png", "2.png"]
    assert any("labels/nobody belongs to no picture" in line for line in found.unused)


def test_captions_come_from_metadata(tmp_path):
    some(tmp_path / "images", 3)
    lines = [
        {"file_name": "images/0.png", "text": "a red square", "factors": {"age": 3}},
        {"file_name": "1.png", "text": "another"},
        {"file_name": "gone.png"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = listing(tmp_path)
    assert [entry.text for entry in found.entries] == ["a red square", "another", ""]
    assert found.entries[0].factors == {"age": 3}
    assert found.unused == ("metadata.jsonl names gone.png, which is not there",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 1 is not JSON"),
        ('{"text": "x"}', 'no "file_name"'),
        ('{"file_name": "0.png", "text": 3}', '"text" must be a string'),
    ],
)
def test_broken_metadata_is_named_by_line(tmp_path, line, message):
    some(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        listing(tmp_path)


def test_splits_follow_the_path_alone_and_stay_when_pictures_are_added(tmp_path):
    some(tmp_path, 60)
    before = {entry.key: entry.split for entry in listing(tmp_path, validation=0.2, test=0.2).entries}
    assert all(
        split == ("test" if fraction(key) < 0.2 else "validation" if fraction(key) < 0.4 else "train")
        for key, split in before.items()
    )
    assert set(before.values()) == {"train", "validation", "test"}
    for k in range(20):
        save(tmp_path / f"new{k}.png")
    after = {entry.key: entry.split for entry in listing(tmp_path, validation=0.2, test=0.2).entries}
    assert len(after) == 80 and all(after[key] == split for key, split in before.items())


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_small_folder_has_something_in_each_split(tmp_path, count):
    data = Folder(some(tmp_path, count), 8)
    assert [len(data.validation_dataset()), len(data.test_dataset())] == [1, 1] and len(data.train_dataset()) == count - 2


def test_two_pictures_can_be_trained_on_but_not_validated(tmp_path):
    data = Folder(some(tmp_path, 2), 8)
    assert len(data.train_dataset()) == 2
    with pytest.raises(UserError, match="has no validation pictures: put some into"):
        data.validation_dataset()


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UsageError, match="leave nothing to train on"):
        Folder(some(tmp_path), validation=0.6, test=0.4).train_dataset()
    with pytest.raises(UsageError, match="data.size=2"):
        Folder(tmp_path, 2)


def test_sub_folders_are_the_splits(tmp_path):
    some(tmp_path / "train/images", 3)
    some(tmp_path / "validation", 2)
    save(tmp_path / "train/masks/1.png", colour=(255, 255, 255))
    data = Folder(tmp_path, 8)
    assert [item["key"] for item in data.train_dataset()] == [f"train/images/{k}.png" for k in range(3)]
    assert [item["mask"] is not None for item in data.train_dataset()] == [False, True, False]
    assert len(data.validation_dataset()) == 2
    with pytest.raises(UserError, match="no test pictures"):
        data.test_dataset()


def test_items_look_like_those_of_the_toy_world(tmp_path):
    some(tmp_path, 4)
    item = Folder(tmp_path, 16).train_dataset()[0]
    assert item["image"].shape == (3, 16, 16) and item["image"].dtype == torch.float32
    assert torch.allclose(item["image"][:, 8, 8], torch.tensor([200, 30, 30]) / 127.5 - 1, atol=1e-5)
    assert item["key"].endswith(".png") and item["index"] == 0 and item["caption"] == "" and item["factors"] == {}
    batch = collate([item, item])
    assert batch["image"].shape == (2, 3, 16, 16) and "mask" not in batch and batch["factors"] == [{}, {}]


def test_the_centre_square_is_taken_from_picture_mask_and_labels_alike(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:30] = (255, 0, 0)  # the left half of the centre square
    mask = np.zeros((20, 60), np.uint8)
    mask[:, 20:30] = 255
    labels = np.zeros((20, 60), np.uint8)
    labels[:, 30:40] = 7
    for folder, values in (("images", wide), ("masks", mask), ("labels", labels)):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png")
    item = Folder(tmp_path, 10).train_dataset()[0]
    assert item["image"][0, 5, :4].min() > 0.9 and item["image"][0, 5, 6:].max() < -0.9
    assert torch.equal(item["mask"][0], torch.tensor([1.0] * 5 + [0.0] * 5).expand(10, 10))
    assert torch.equal(item["labels"], torch.tensor([0] * 5 + [7] * 5).expand(10, 10))


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.new("RGB", (32, 32), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 32, 16))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    image = Folder(tmp_path, 8).train_dataset()[0]["image"]
    assert image[0, 0, 4] < -0.9 and image[0, 7, 4] > 0.9


def test_bad_files_are_left_out_with_one_warning_that_names_the_first(tmp_path):
    some(tmp_path, 5)
    (tmp_path / "x_empty.png").touch()
    (tmp_path / "y_text.jpg").write_text("I am not a picture")
    cut = noisy(tmp_path / "z_cut.png")
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.warns(UserWarning, match=r"3 of 8 pictures .* are left out; the first: .*x_empty\.png is empty") as caught:
        items = everything(Folder(tmp_path, 8))
    assert len(caught) == 1 and len(items) == 5


def test_a_picture_that_breaks_later_is_replaced_by_the_next(tmp_path):
    some(tmp_path, 3)
    broken = noisy(tmp_path / "0.png")
    data = bytearray(broken.read_bytes())
    data[60:4000] = bytes(3940)  # both ends stay whole, so that only decoding notices
    broken.write_bytes(data)
    assert quick_check(broken) is None and full_check(broken) is not None
    dataset = FolderDataset(listing(tmp_path).entries, 8)
    with pytest.warns(UserWarning, match=r"left out, 1 of 3 so far: .*0\.png"):
        assert dataset[0]["key"] == "1.png"
    assert dataset[0]["key"] == "1.png" and dataset.skipped == {"0.png"}


def test_a_jpeg_with_bytes_after_its_end_is_fine(tmp_path):
    phone = save(tmp_path / "a.jpg")
    phone.write_bytes(phone.read_bytes() + b"\0" * 40)
    assert [entry.key for entry in listing(tmp_path).entries] == ["a.jpg"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "there are no pictures"),
        (lambda root: (root / "a.png").touch(), "none of the 1 pictures .*a.png is empty"),
        (lambda root: root.rmdir(), "there is no folder"),
    ],
)
def test_a_folder_without_pictures_is_refused(tmp_path, prepare, message):
    root = tmp_path / "photos"
    root.mkdir()
    prepare(root)
    with pytest.raises(UserError, match=message):
        Folder(root).train_dataset()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("masks", lambda path: save(path, size=(9, 9)), "9 x 9 pixels but its picture 24 x 24"),
        ("labels", lambda path: save(path), "the labels .* have colours"),
    ],
)
def test_unfit_companions_are_named(tmp_path, name, make, message):
    save(tmp_path / "images/a.png")
    make(tmp_path / name / "a.png")
    with pytest.warns(UserWarning, match=message), pytest.raises(UserError, match="none of the 1 pictures"):
        Folder(tmp_path, 8).train_dataset()[0]


def test_workers_read_it_too(tmp_path):
    data = Folder(some(tmp_path, 12), 8)
    data.num_workers, data.batch_size = 1, 4
    keys = sorted(key for batch in data.train_dataloader() for key in batch["key"])
    assert keys == sorted(item["key"] for item in data.train_dataset())
