"""Captioned pictures of both domains, and data that are encoded once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from editkit.data import encoded as data_encoded
from editkit.data.captioned import Captioned, CaptionedDataset, captioned_scene
from editkit.data.encoded import Encoded, EncodedDataset, drawn
from editkit.errors import UsageError, UserError


class Encoder:
    """Halves pictures; counts what it encodes."""

    def __init__(self, name: str = "a") -> None:
        self.name, self.seen, self.devices = name, 0, []

    def posterior(self, images):
        self.seen += len(images)
        small = images[..., ::2, ::2]
        return small, torch.full_like(small, -2.0)

    def digest(self) -> str:
        return self.name

    def to(self, device):
        self.devices.append(device.type)


def encoded(folder: Path, encoder: Encoder, inner: Dataset | None = None) -> EncodedDataset:
    inner = inner or CaptionedDataset("train", 6, 16)
    dataset = EncodedDataset(inner, encoder, ("image",), folder)
    dataset.prepare()
    return dataset


def test_three_scenes_then_a_face_each_with_a_text_of_its_own():
    dataset = CaptionedDataset("train", 16, 16)
    items = [dataset[k] for k in range(16)]
    domains = [item["key"].partition("/")[0] for item in items]
    assert domains == ["scenes", "scenes", "scenes", "faces"] * 4
    assert len({item["key"] for item in items}) == 16
    assert [dataset.caption(k) for k in range(16)] == [item["caption"] for item in items]
    assert all(item["image"].shape == (3, 16, 16) and item["caption"] for item in items)


def test_one_scene_in_eight_is_in_another_style_and_its_text_may_say_so():
    scenes = [captioned_scene("train", k) for k in range(200)]
    styled = [(scene, words) for scene, words in scenes if scene.style != "plain"]
    assert len(styled) == 25
    told = [scene.style in words.claims["style"] for scene, words in styled if "style" in words.claims]
    assert told and all(told)


def test_some_scenes_show_one_object_alone_from_near():
    plain, near = CaptionedDataset("train", 400, 32), CaptionedDataset("train", 400, 32, near=0.4)
    texts = [(plain.caption(k), near.caption(k)) for k in range(400)]
    changed = [k for k, (before, after) in enumerate(texts) if before != after]
    assert 0.3 < len(changed) / 300 < 0.5 and all(k % 4 != 3 for k in changed), "of the scenes, not of the faces"
    items = [near[k] for k in changed[:48]]
    shares = torch.stack([item["foreground"].mean() for item in items])
    assert [item["caption"] for item in items] == [texts[k][1] for k in changed[:48]]
    assert all(item["factors"]["count"] == 1 for item in items)
    assert shares.min() < 0.04 and shares.max() > 0.15, "as small as in a scene and several times as large"
    close = torch.tensor([any(word in item["caption"] for word in ("close", "near")) for item in items])
    assert 0.15 < close.float().mean() < 0.45 and shares[close].mean() > 1.5 * shares[~close].mean()


@pytest.mark.parametrize("wrong", [("holiday", 4, 16), ("train", 0, 16), ("train", 4, 2)])
def test_wrong_splits_and_sizes_are_named(wrong):
    with pytest.raises(UsageError, match=r"split|at least 1"):
        CaptionedDataset(*wrong)


def test_pictures_are_encoded_once_and_texts_stay(tmp_path):
    inner, encoder = CaptionedDataset("train", 6, 16), Encoder()
    first = encoded(tmp_path, encoder, inner)
    assert encoder.seen == 6 and len(first) == 6
    again = encoded(tmp_path, encoder, inner)
    assert encoder.seen == 6, "what is on the disk is not encoded again"
    for k in range(6):
        item, picture = again[k], inner[k]
        torch.testing.assert_close(item["image_posterior"][0], picture["image"][..., ::2, ::2], atol=1e-3, rtol=1e-3)
        assert torch.all(item["image_posterior"][1] == -2)
        assert (item["caption"], item["key"], item["index"]) == (picture["caption"], picture["key"], picture["index"])
        assert "image" not in item


def test_masks_are_kept_beside_the_latents(tmp_path):
    inner, encoder = CaptionedDataset("train", 6, 16), Encoder()
    whole = EncodedDataset(inner, encoder, ("image",), tmp_path, kept=("foreground",))
    assert all(torch.equal(whole[k]["foreground"], inner[k]["foreground"]) for k in range(6))
    assert [bool(whole[k]["foreground"].any()) for k in range(4)] == [True, True, True, False], "objects of scenes, not faces"
    assert "foreground" not in encoded(tmp_path, encoder)[0], "another cache"


def test_another_encoder_and_other_pictures_are_encoded_anew(tmp_path):
    encoder, other = Encoder(), Encoder("b")
    encoded(tmp_path, encoder)
    encoded(tmp_path, other)
    assert other.seen == 6
    encoded(tmp_path, encoder, CaptionedDataset("validation", 6, 16))
    assert encoder.seen == 12


class Dying(Encoder):
    """Ends after some pictures, as if it were interrupted."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def posterior(self, images):
        if self.seen >= self.after:
            raise KeyboardInterrupt
        return super().posterior(images)


def test_one_that_was_killed_goes_on_with_the_block_that_it_was_at(tmp_path, monkeypatch):
    monkeypatch.setattr(data_encoded, "BLOCK", 2)
    monkeypatch.setattr(data_encoded, "BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, Dying(after=3))  # one block of two, and half of the next
    encoder, inner = Encoder(), CaptionedDataset("train", 6, 16)
    whole = encoded(tmp_path, encoder, inner)
    assert encoder.seen == 4, "the first block is not encoded again, the half of the second is"
    assert [whole[k]["key"] for k in range(6)] == [inner[k]["key"] for k in range(6)]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_processes_at_once_share_the_blocks(tmp_path, monkeypatch, first):
    """Another process finishes the second block while this one is at the first."""
    monkeypatch.setattr(data_encoded, "BLOCK", 2)
    monkeypatch.setattr(os, "urandom", lambda count: first.to_bytes(count, "big"))
    inner = CaptionedDataset("train", 6, 16)

    class Meanwhile(Encoder):
        def posterior(self, images):
            if not self.seen:
                monkeypatch.setattr(os, "urandom", lambda count: ((first + 1) % 3).to_bytes(count, "big"))
                with pytest.raises(KeyboardInterrupt):
                    encoded(tmp_path, Dying(after=2), inner)
            return super().posterior(images)

    mine = Meanwhile()
    whole = encoded(tmp_path, mine, inner)
    assert mine.seen == 4, "a block that is done when it is come to is left out"
    for k in range(6):
        torch.testing.assert_close(whole[k]["image_posterior"][0], inner[k]["image"][..., ::2, ::2], atol=1e-3, rtol=1e-3)


def test_the_encoder_is_on_the_device_while_it_is_needed_and_progress_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(data_encoded, "BATCH", 2)
    encoder, told, inner = Encoder(), [], CaptionedDataset("train", 6, 16)
    EncodedDataset(inner, encoder, ("image",), tmp_path).prepare(torch.device("meta"), told.append)
    assert encoder.devices == ["meta", "cpu"] and told == [2, 4, 6]
    EncodedDataset(inner, encoder, ("image",), tmp_path).prepare(torch.device("meta"), told.append)
    assert encoder.devices == ["meta", "cpu", "cpu"] and told == [2, 4, 6], "nothing was left to do"


def test_a_full_disk_is_said_so(tmp_path, monkeypatch):
    def refuse(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_encoded, "write_bytes", refuse)
    with pytest.raises(UserError, match="cannot keep encoded data in .*No space left"):
        encoded(tmp_path, Encoder())


def test_only_training_pictures_are_encoded(tmp_path):
    data = Encoded(Captioned(16, 4, 4, 4), Encoder, cache_dir=str(tmp_path))
    assert "image_posterior" in data.train_dataset()[0]
    assert "image" in data.validation_dataset()[0]
    with pytest.raises(UsageError, match="cache_dir"):
        Encoded(Captioned(16, 4, 4, 4), Encoder)


def test_latents_are_drawn_with_the_posteriors_own_deviation():
    posterior = torch.stack([torch.full((4, 40, 40), 3.0), torch.full((4, 40, 40), -2.0)])[None]
    sample = drawn(posterior, torch.Generator().manual_seed(0))
    assert abs(sample.mean() - 3) < 0.02
    deviation = torch.tensor(-2.0).mul(0.5).exp()
    assert abs(sample.std() - deviation) < 0.02
    assert abs(deviation - torch.tensor(-2.0).exp()) > 0.1, "the variance taken for the deviation would be seen"
