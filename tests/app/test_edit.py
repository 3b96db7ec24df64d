"""`editkit edit` from options to files: pasting, folders, pairing, resuming, provenance. The method is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editkit.app.artefacts import Weights
from editkit.app.edit import edit_images
from editkit.app.options import EditOptions
from editkit.data.files import provenance
from editkit.errors import UsageError, UserError
from tests.app.standin import Inverter, install, picture, pixels


@pytest.fixture
def editor(monkeypatch):
    return install(monkeypatch.setattr)


def options(image: Path | None, **more) -> EditOptions:
    return EditOptions(method="invert", image=image, **more)


# One picture.


def test_one_picture_is_edited_in_its_square_only(editor, tmp_path, capsys):
    source = picture(tmp_path / "a.png", size=(48, 32))
    assert edit_images(options(source, output=tmp_path / "out.png")) == 0
    before, after = pixels(source), pixels(tmp_path / "out.png")
    assert np.array_equal(after[:, 8:40], 255 - before[:, 8:40]), "the square has the model's size: exactly inverted"
    assert np.array_equal(after[:, :8], before[:, :8]) and np.array_equal(after[:, 40:], before[:, 40:])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.png")


def test_with_a_mask_nothing_else_changes(editor, tmp_path):
    source = picture(tmp_path / "a.png", size=(90, 70))
    mask = np.zeros((70, 90), bool)
    mask[10:25, 40:60] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert edit_images(options(source, mask=tmp_path / "mask.png", output=tmp_path / "out.png")) == 0
    before, after = pixels(source), pixels(tmp_path / "out.png")
    assert np.array_equal(after[~mask], before[~mask])
    assert np.array_equal(after[mask], 255 - before[mask]), "a mask smaller than the model is zoomed on without resampling"


def test_the_default_name_is_the_pictures_and_the_methods(editor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit_images(options(picture(tmp_path / "in" / "face.jpg")))
    assert (tmp_path / "face.invert.png").is_file()
    edit_images(options(tmp_path / "in" / "face.jpg", output=tmp_path / "results"))
    assert (tmp_path / "results" / "face.invert.png").is_file(), "a name without suffix is a folder"


def test_strengths_and_samples_share_one_preparation(editor, tmp_path):
    source = picture(tmp_path / "a.png", size=(32, 32))
    edit_images(options(source, strength=[0.0, 1.0, -0.5], samples=2, output=tmp_path / "o.png"))
    names = sorted(path.name for path in tmp_path.glob("o*.png"))
    assert names == sorted(["o.strip.png", *(f"o.strength{s}.{n}.png" for s in ("+0", "+1", "-0.5") for n in (1, 2))])
    assert editor.prepared == 1
    assert np.array_equal(pixels(tmp_path / "o.strength+0.1.png"), pixels(source))
    assert np.array_equal(pixels(tmp_path / "o.strength+1.2.png"), 255 - pixels(source))
    strip = pixels(tmp_path / "o.strip.png")
    assert strip.shape == (2 * 32, 4 * 32, 3), "a row a sample: source, -0.5, 0, 1"
    assert np.array_equal(strip[:32, :32], pixels(source)) and np.array_equal(strip[32:, 96:], 255 - pixels(source))
    said = provenance(tmp_path / "o.strength-0.5.2.png")
    assert (said["strength"], said["sample"]) == (-0.5, 1)


def test_every_picture_says_where_it_comes_from(editor, tmp_path):
    source = picture(tmp_path / "a.png")
    edit_images(options(source, output=tmp_path / "o.png", seed=7, steps=12))
    said = provenance(tmp_path / "o.png")
    assert (said["method"], said["seed"], said["steps"], said["backbone_digest"]) == ("invert", 7, 12, "abc")
    assert said["scores"]["reconstruction_psnr"] == 40.0 and len(said["image"]) == 64


def test_alpha_and_profile_arrive_in_the_result(editor, tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=profile)
    edit_images(options(tmp_path / "a.png", output=tmp_path / "o.png"))
    with Image.open(tmp_path / "o.png") as result:
        assert result.mode == "RGBA" and result.info["icc_profile"] == profile
        assert np.array_equal(np.asarray(result)[..., 3], rgba[..., 3])


def test_a_picture_unlike_the_training_images_brings_a_warning(editor, tmp_path, capsys):
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    edit_images(options(tmp_path / "white.png", output=tmp_path / "o.png"))
    assert "unlike what the model was trained on" in capsys.readouterr().err
    edit_images(options(picture(tmp_path / "a.png"), output=tmp_path / "p.png"))
    assert "unlike" not in capsys.readouterr().err


# Overwriting.


def test_own_results_are_replaced_but_nobody_elses_file(editor, tmp_path):
    source, out = picture(tmp_path / "a.png"), tmp_path / "o.png"
    edit_images(options(source, output=out))
    edit_images(options(source, output=out, strength=[0.0]))
    assert provenance(out)["strength"] == 0.0
    before = picture(out, seed=9).read_bytes()
    with pytest.raises(UserError, match="not written by editkit"):
        edit_images(options(source, output=out))
    assert out.read_bytes() == before
    with pytest.raises(UserError, match="is one of the inputs"):
        edit_images(options(source, output=source))


# Inputs.


def test_inputs_are_held_against_the_card(monkeypatch, tmp_path):
    source = picture(tmp_path / "a.png")
    install(monkeypatch.setattr, card={"needs": ["image", "mask", "references"]})
    with pytest.raises(UsageError, match="invert needs --mask and --reference"):
        edit_images(options(source, output=tmp_path / "o.png"))
    install(monkeypatch.setattr)
    with pytest.raises(UsageError, match="no use for --reference"):
        edit_images(options(source, reference=[source], output=tmp_path / "o.png"))
    with pytest.raises(UsageError, match="no use for --prompt"):
        edit_images(options(source, prompt="a hat", output=tmp_path / "o.png"))
    assert not (tmp_path / "o.png").exists()


def test_a_prompt_is_of_use_where_weights_have_a_text(monkeypatch, tmp_path):
    smiling = Weights(tmp_path / "smiling.safetensors", {"target": "a smiling face"})
    install(monkeypatch.setattr, targets=(smiling,))
    assert edit_images(options(picture(tmp_path / "a.png"), prompt="A smiling face.", output=tmp_path / "o.png")) == 0


class Keeper(Inverter):
    """Keeps what it was asked."""

    needs = ("image", "references", "instruction")

    def edit(self, requests, state):
        self.requests = list(requests)
        return super().edit(requests, state)


def test_references_and_texts_reach_the_method(monkeypatch, tmp_path):
    editor = install(monkeypatch.setattr, Keeper(), card={"needs": ["image", "references", "instruction"], "takes": ["box"]})
    source = picture(tmp_path / "a.png", size=(64, 32))
    references = [picture(tmp_path / "r1.png", 1), picture(tmp_path / "r2.png", 2, (10, 90))]
    edit_images(
        options(source, reference=references, instruction="make it night", box="16,0,32,16", output=tmp_path / "o.png", seed=3)
    )
    (request,) = editor.requests
    assert [tuple(reference.shape) for reference in request.references] == [(3, 32, 32), (3, 32, 32)]
    assert request.instruction == "make it night" and request.seed == 3 and request.key == "a.png"
    assert request.box == (0.0, 0.0, 0.5, 0.5), "in shares of the square that the method sees"


def test_a_method_may_ask_for_whole_references(monkeypatch, tmp_path):
    keeper = Keeper()
    keeper.whole_references = True
    editor = install(monkeypatch.setattr, keeper, card={"needs": ["image", "references", "instruction"]})
    source = picture(tmp_path / "a.png", size=(32, 32))
    references = [picture(tmp_path / "small.png", 1, (10, 20)), picture(tmp_path / "large.png", 2, (64, 192))]
    edit_images(options(source, reference=references, instruction="make it night", output=tmp_path / "o.png"))
    shapes = [tuple(reference.shape) for reference in editor.requests[0].references]
    assert shapes == [(3, 20, 10), (3, 96, 32)], "never enlarged; made smaller until the shorter side is the model's"


# Folders.


def folder(tmp_path: Path, count: int = 6) -> Path:
    for n in range(count):
        picture(tmp_path / "in" / f"{n}.png", n, (40 + n, 40))
    return tmp_path / "in"


def test_a_folder_goes_in_and_a_folder_comes_out(editor, tmp_path):
    source = folder(tmp_path)
    picture(source / "sub" / "0.jpg", 20)
    picture(source / "5.jpg", 21)
    (source / "notes.txt").write_text("mine")
    assert edit_images(options(source, output=tmp_path / "out")) == 0
    names = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.jpg.png", "5.png.png", "sub/0.png"]
    assert max(len(batch) for batch in editor.batches) == 4, "in batches"
    before, after = pixels(source / "0.png"), pixels(tmp_path / "out" / "0.png")
    assert not np.array_equal(before, after) and before.shape == after.shape


def test_a_picture_gives_the_same_result_alone_and_in_a_folder(editor, tmp_path):
    source = folder(tmp_path, 3)
    edit_images(options(source, output=tmp_path / "out"))
    edit_images(options(source / "1.png", output=tmp_path / "one.png"))
    assert np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "out" / "1.png"))
    assert provenance(tmp_path / "one.png")["key"] == provenance(tmp_path / "out" / "1.png")["key"]


def test_a_second_run_does_only_what_is_missing_or_different(editor, tmp_path):
    source, out = folder(tmp_path), tmp_path / "out"
    edit_images(options(source, output=out))
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    editor.batches.clear()
    assert edit_images(options(source, output=out)) == 0 and not editor.batches, "all done"
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")} == times
    (out / "2.png").unlink()
    picture(source / "3.png", 33)
    edit_images(options(source, output=out))
    assert sorted(editor.edited()) == ["2.png", "3.png"], "a lost result, and a picture with other content"
    editor.batches.clear()
    edit_images(options(source, output=out, seed=1))
    assert len(editor.edited()) == 6, "other settings"


def test_a_table_of_landmarks_turns_every_face_of_a_folder(editor, tmp_path, capsys):
    source, out, table = folder(tmp_path, 3), tmp_path / "out", tmp_path / "points.csv"
    numbers = "22,20,30,20,26,24,23,28,29,28"
    table.write_text(f"0.png,{numbers}\n1.png,{numbers}\n")
    assert edit_images(options(source, output=out, landmarks=str(table))) == 1
    assert "no line for 2.png" in capsys.readouterr().err and not (out / "2.png").exists()
    changed = (pixels(source / "0.png") != pixels(out / "0.png")).any(2)
    assert changed[12:30, 16:36].mean() > 0.9, "the square around the eyes and the mouth"
    assert not changed[:, :8].any() and not changed[:, 44:].any()
    with pytest.raises(UsageError, match="must be a table"):
        edit_images(options(source, output=out, landmarks=numbers))


def test_results_inside_the_folder_are_no_inputs(editor, tmp_path):
    source = folder(tmp_path, 2)
    for _ in range(2):
        assert edit_images(options(source, output=source / "edited")) == 0
    assert sorted(editor.edited()) == ["0.png", "1.png"]


def test_bad_pictures_are_put_aside(editor, tmp_path, capsys):
    source, out = folder(tmp_path), tmp_path / "out"
    whole = (source / "1.png").read_bytes()
    (source / "1.png").write_bytes(whole[: len(whole) // 2])
    (source / "2.png").write_bytes(b"")
    (source / "3.png").write_text("a text")
    Image.new("RGB", (40, 40)).save(source / "4.png")  # the method itself fails on it
    picture(out / "5.png", 50)
    mine = (out / "5.png").read_bytes()
    assert edit_images(options(source, output=out)) == 1
    said = capsys.readouterr().err
    reasons = ("cut off", "empty", "not a picture", "black hole", "not written by")
    for name, reason in zip(("1.png", "2.png", "3.png", "4.png", "5.png"), reasons, strict=True):
        assert f"failed: {name}: " in said and reason in said
    assert "1 of 6 done, 5 failed" in said
    assert sorted(path.name for path in out.glob("*.png")) == ["0.png", "5.png"] and (out / "5.png").read_bytes() == mine
    lines = [json.loads(line) for line in (out / "editkit.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines if line["status"] == "failed"} == {f"{n}.png" for n in range(1, 6)}
    (source / "1.png").write_bytes(whole)
    editor.batches.clear()
    assert edit_images(options(source, output=out)) == 1
    assert (out / "1.png").is_file() and "0.png" not in editor.edited(), "the next run tries only the failed ones"


def test_masks_are_paired_by_name(editor, tmp_path, capsys):
    source = folder(tmp_path, 3)
    for n in (0, 1):
        mask = np.zeros((40, 40 + n), bool)
        mask[5:9, 5 + 10 * n : 9 + 10 * n] = True
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{n}.png")
    assert edit_images(options(source, mask=tmp_path / "masks", output=tmp_path / "out")) == 1
    assert "failed: 2.png: " in capsys.readouterr().err, "a picture without a mask"
    for n in (0, 1):
        mask = np.zeros((40, 40 + n), bool)
        mask[5:9, 5 + 10 * n : 9 + 10 * n] = True
        before, after = pixels(source / f"{n}.png"), pixels(tmp_path / "out" / f"{n}.png")
        assert np.array_equal(after[~mask], before[~mask]) and not np.array_equal(after[mask], before[mask])


def test_a_data_sets_own_layout_is_understood(monkeypatch, tmp_path):
    editor = install(monkeypatch.setattr, Keeper(), card={"needs": ["image", "references", "instruction"]})
    picture(tmp_path / "set" / "images" / "a.png", 1)
    picture(tmp_path / "set" / "references" / "a.png", 2)
    picture(tmp_path / "set" / "labels" / "a.png", 3)
    (tmp_path / "set" / "metadata.jsonl").write_text('{"file_name": "images/a.png", "instruction": "add a hat"}\n')
    assert edit_images(options(tmp_path / "set", output=tmp_path / "out")) == 0
    (request,) = editor.requests
    assert request.key == "a.png" and request.instruction == "add a hat" and len(request.references) == 1
    assert (tmp_path / "out" / "a.png").is_file()


def test_metadata_cannot_name_files_outside_the_folder(monkeypatch, tmp_path, capsys):
    install(monkeypatch.setattr)
    source = folder(tmp_path, 2)
    picture(tmp_path / "secret.png")
    (source / "metadata.jsonl").write_text('{"file_name": "0.png", "mask": "../secret.png"}\n')
    assert edit_images(options(source, output=tmp_path / "out")) == 1
    assert "leads out of the folder" in capsys.readouterr().err


# The loop.


class Small(Inverter):
    """Has room for two pictures."""

    def edit(self, requests, state):
        if len(requests) > 2:
            raise torch.OutOfMemoryError("no memory")
        return super().edit(requests, state)


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(monkeypatch, tmp_path):
    editor = install(monkeypatch.setattr, Small(), batch_size=4)
    assert edit_images(options(folder(tmp_path), output=tmp_path / "out")) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    assert sorted(editor.edited()) == [f"{n}.png" for n in range(6)]


def test_the_batch_holds_the_samples_too(editor, tmp_path):
    edit_images(options(folder(tmp_path), output=tmp_path / "out", samples=2))
    assert max(len(batch) for batch in editor.batches) == 4


class Strict(Inverter):
    def edit(self, requests, state):
        raise UsageError("2000 steps do not fit")


def test_wrong_settings_end_the_run_at_once(monkeypatch, tmp_path):
    install(monkeypatch.setattr, Strict())
    with pytest.raises(UsageError, match="2000 steps"):
        edit_images(options(folder(tmp_path), output=tmp_path / "out", steps=2000))


def test_a_full_disk_ends_the_run(editor, tmp_path, monkeypatch):
    source = folder(tmp_path, 3)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        edit_images(options(source, output=tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.png")) and not list((tmp_path / "out").glob(".*.part"))


def test_a_result_that_was_written_but_not_listed_is_kept_and_listed(editor, tmp_path):
    source, out = folder(tmp_path, 3), tmp_path / "out"
    assert edit_images(options(source, output=out)) == 0
    listing = out / "editkit.jsonl"
    lines = listing.read_text().splitlines(keepends=True)
    listing.write_text("".join(lines[:-1]))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert edit_images(options(source, output=out)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")} == before
    assert sorted(map(json.dumps, map(json.loads, listing.read_text().splitlines()))) == sorted(line.strip() for line in lines)


# Killed in the middle.

KILLED = """
import sys, time
from pathlib import Path
from tests.app.standin import Inverter, install
from editkit.app.edit import edit_images
from editkit.app.options import EditOptions

class Slow(Inverter):
    def edit(self, requests, state):
        time.sleep(0.05)
        with open(sys.argv[3], "a") as file:
            file.writelines(request.key + "\\n" for request in requests)
        return super().edit(requests, state)

install(setattr, Slow(), batch_size=2)
sys.exit(edit_images(EditOptions(method="invert", image=Path(sys.argv[1]), output=Path(sys.argv[2]))))
"""


def test_killed_in_the_middle_the_same_command_goes_on(tmp_path):
    source, out, record = folder(tmp_path, 16), tmp_path / "out", tmp_path / "edited.txt"
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(record)]
    kills = 0
    for after in (1, 7):
        process = subprocess.Popen(command)
        while process.poll() is None and len(list(out.glob("*.png"))) < after:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        for path in out.glob("*.png"):
            pixels(path)  # whatever has a result's name is a whole result
    assert kills, "the test came too late"
    assert subprocess.run(command).returncode == 0
    assert sorted(path.name for path in out.glob("*.png")) == sorted(f"{n}.png" for n in range(16))
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "nothing half-written is left"
    done = [json.loads(line)["key"] for line in (out / "editkit.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len(set(done)) == 16
    assert len(record.read_text().split()) <= 16 + 8 * kills, "what was finished is not done again"
    for n in range(16):
        before, after = pixels(source / f"{n}.png"), pixels(out / f"{n}.png")
        assert np.array_equal(before[:, :1], after[:, :1]) == (n > 1)


# Shares of a folder.


def test_shares_of_a_folder_together_are_the_whole_and_nothing_is_done_twice(editor, tmp_path):
    for index in range(5):
        picture(tmp_path / "in" / f"{index}.png", seed=index)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert edit_images(options(tmp_path / "in", output=whole)) == 1
    codes = [edit_images(options(tmp_path / "in", output=shared, shard=f"{index}/3")) for index in (0, 1, 2)]
    assert sorted(codes) == [0, 0, 1], "the bad picture is one share's"
    assert sorted(editor.edited()) == sorted([f"{index}.png" for index in range(5)] * 2)
    for index in range(5):
        assert np.array_equal(pixels(whole / f"{index}.png"), pixels(shared / f"{index}.png"))
    editor.batches.clear()
    for again in ({"shard": "0/3"}, {"shard": "1/2"}, {}):
        edit_images(options(tmp_path / "in", output=shared, **again))
    assert editor.edited() == [], "done by another share, or by another number of shares, is done"


def test_where_the_lists_of_shares_differ_the_results_themselves_decide(editor, tmp_path):
    picture(tmp_path / "in" / "a.png")
    for strength, shard in ((0.5, None), (1.0, "0/1"), (0.5, None)):
        edit_images(options(tmp_path / "in", output=tmp_path / "out", strength=[strength], shard=shard))
    assert len(editor.batches) == 3, "the last command's result was not there any more"
    edit_images(options(tmp_path / "in", output=tmp_path / "out", strength=[0.5]))
    assert len(editor.batches) == 3


def test_a_share_is_of_a_folder(editor, tmp_path):
    with pytest.raises(UsageError, match="share of a folder"):
        edit_images(options(picture(tmp_path / "a.png"), output=tmp_path / "o.png", shard="0/2"))
