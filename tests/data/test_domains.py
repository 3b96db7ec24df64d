"""Two domains without pairs: toy scenes, and a user's folder with source and target texts."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from editkit.data.domains import PromptedFolder, SceneDomains, SceneDomainsData
from editkit.data.items import collate
from editkit.data.toyworld.scenes.captions import full_caption
from editkit.data.toyworld.scenes.world import scene_at
from editkit.errors import UsageError, UserError
from tests.tiny import write_images

COUNT = 12


def pairs(scenes, factor):
    """Return the scenes that are shown in more than one domain: all but the factor alike."""
    contents = [repr({key: value for key, value in vars(scene).items() if key != factor}) for scene in scenes]
    return {content for content in contents if contents.count(content) > 1}


@pytest.mark.parametrize(("factor", "values"), [("time", ("day", "night")), ("season", ("summer", "winter"))])
def test_no_scene_is_seen_in_both_domains(factor, values):
    data = SceneDomains("train", COUNT, 16, factor)
    items = [data[k] for k in range(COUNT)]
    assert [item["domain"] for item in items] == [values[k % 2] for k in range(COUNT)]
    assert all(item["factors"][factor] == item["domain"] and item["visible"][factor] for item in items)
    shown = [data.scene(k, k % 2) for k in range(COUNT)]
    assert not pairs(shown, factor)
    assert pairs([*shown, data.scene(0, 1)], factor), "a pair would be noticed"
    assert len({item["key"] for item in items}) == COUNT


def test_texts_are_true_of_the_picture_and_of_its_translation():
    data = SceneDomains("train", 4, 16)
    for k in range(4):
        item = data[k]
        assert item["caption"] == full_caption(data.scene(k, k % 2)).text
        assert item["target_caption"] == full_caption(data.scene(k, 1 - k % 2)).text
        words = ("by day", "at night") if k % 2 == 0 else ("at night", "by day")
        assert words[0] in item["caption"] and words[1] in item["target_caption"]


def test_places_without_a_season_become_ones_that_have_one():
    data = SceneDomains("train", 40, 16, "season")
    odd = [k for k in range(40) if scene_at("train", k).place in ("room", "sky")]
    assert odd and all(data.scene(k, 0).place not in ("room", "sky") for k in odd)


def test_prompts_may_be_the_same_for_a_whole_domain():
    data = SceneDomainsData(16, 4, 4, 4, prompts=["by day", "at night"]).train_dataset()
    assert [(data[k]["caption"], data[k]["target_caption"]) for k in (0, 1)] == [("by day", "at night"), ("at night", "by day")]
    batch = collate([data[k] for k in range(4)])
    assert batch["image"].shape == (4, 3, 16, 16) and batch["target_caption"][0] == "at night"


def test_what_is_no_domain_is_named():
    with pytest.raises(UsageError, match="data.factor=tim is unknown.*time"):
        SceneDomains("train", 4, 16, "tim")
    with pytest.raises(UsageError, match="takes two texts, for day and night"):
        SceneDomains("train", 4, 16, prompts=["by day"])


def folder(path, lines):
    write_images(path, 4)
    (path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def line(k, name="file_name", **texts):
    return {name: f"{k}.png", "source": "summer", "target": "winter"} | texts


def test_a_folder_with_source_and_target_texts(tmp_path):
    lines = [line(0), line(1, source="winter", target="summer"), line(2, "image"), line(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = PromptedFolder(folder(tmp_path, lines), 16)
        items = [data.dataset(split)[k] for split in ("train", "validation", "test") for k in range(len(data.dataset(split)))]
    texts = {item["key"]: (item["caption"], item["target_caption"]) for item in items}
    assert texts == {
        "0.png": ("summer", "winter"),
        "1.png": ("winter", "summer"),
        "2.png": ("summer", "winter"),
        "3.png": ("summer", "winter"),
    }
    assert all(isinstance(item["image"], torch.Tensor) and item["image"].shape == (3, 16, 16) for item in items)


def test_pictures_without_texts_are_named(tmp_path):
    lines = [line(k) for k in range(3)] + [{"file_name": "3.png", "source": "summer"}]
    data = PromptedFolder(folder(tmp_path, lines), 16)
    with pytest.raises(UserError, match=r"lack a text, the first is 3.png: .*metadata.jsonl"):
        for split in ("train", "validation", "test"):
            data.dataset(split)
