"""A batch whose gradient is NaN or infinite is written down, and nothing of it reaches the weights."""

from __future__ import annotations

import json

import pytest
import torch

from editkit.training import share
from editkit.training.not_finite import report
from editkit.training.rundir import RunDir
from editkit.training.stepper import NotFinite
from tests.training.test_fit import final, run
from tests.training.toys import Numbers


class Bad(Numbers):
    """Item 3 has no numbers."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "image": item["image"] * float("nan")} if index == 3 else item


def test_all_images_of_the_batch_and_their_losses_are_in_a_file_that_the_message_names(tmp_path):
    run(tmp_path, steps=2, batch_size=6)
    before = final(tmp_path)
    with pytest.raises(NotFinite) as refused:
        run(tmp_path, dataset=Bad(), batch_size=6)
    (file,) = tmp_path.glob("not-finite-step-*.json")
    assert f"All of them, and their losses, are in {file}" in str(refused.value) and "\n" not in str(refused.value)
    about = json.loads(file.read_text())
    assert file.name == f"not-finite-step-{about['step']:08d}.json" and about["group"] == "net"
    ((one,),) = about["processes"]
    assert len(one["images"]) == len(one["losses"]["l2"]) == 6 and "3" in one["images"]
    assert one["losses"]["l2"][one["images"].index("3")] == "nan"
    assert final(tmp_path) == before


def test_the_bad_image_may_be_in_an_earlier_batch_of_the_step(tmp_path):
    """An easy wrong version lists the batch that the step came with, whose images are all good."""
    with pytest.raises(NotFinite, match="losses l2=nan"):
        run(tmp_path, dataset=Bad(), batch_size=2, accumulate=4, steps=2)
    (file,) = tmp_path.glob("not-finite-step-*.json")
    ((*batches,),) = json.loads(file.read_text())["processes"]
    bad = ["3" in one["images"] for one in batches]
    assert len(batches) == 4 and any(bad) and not bad[-1]
    assert ["nan" in one["losses"]["l2"] for one in batches] == bad


def test_every_process_tells_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    other = [{"images": ["b"], "losses": {"l1": [0.5]}}]
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda shares, own: shares.__setitem__(slice(None), [own, other]))
    batches = [(["a"], {"l1": torch.tensor(float("-inf"))})]
    file = report(RunDir(tmp_path), 4, "net", batches)
    assert json.loads(file.read_text())["processes"] == [[{"images": ["a"], "losses": {"l1": ["-inf"]}}], other]
    file.unlink()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert report(RunDir(tmp_path), 4, "net", batches) == file and not file.exists(), "the first process writes for all"


def test_a_disk_that_refuses_the_file_does_not_hide_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert report(RunDir(tmp_path / "file" / "run"), 1, "net", []) is None
    assert share.gathered("own") == ["own"]
