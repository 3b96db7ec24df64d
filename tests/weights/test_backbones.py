"""The backbones that conf/ names: where their weights are from is known, and a missing one says what to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from editkit.app.loaded import load_backbone
from editkit.app.weights import FOLDER_VARIABLE, OFFLINE_VARIABLE
from editkit.backbones.assets import PREFIX, resolve
from editkit.backbones.registry import entries, original, provider
from editkit.cli import run
from editkit.errors import UserError
from editkit.recipe import compose
from tests.convert.reference import Weights, adm

CONF = Path(__file__).parents[2] / "conf" / "backbone"
KNOWN = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in sorted(CONF.glob("*.yaml"))}
PATHS = {name: config["path"] for name, config in KNOWN.items() if "path" in config}  # the others start untrained
PUBLISHED = {name: path for name, path in PATHS.items() if not path.startswith(PREFIX)}
CONVERTED = {name: path for name, path in PUBLISHED.items() if original(path)}


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A machine without weights and without a network, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.delenv(OFFLINE_VARIABLE, raising=False)


def refusal(name):
    """Return the message for a backbone whose weights are missing, and the commands in it."""
    with pytest.raises(UserError) as caught:
        load_backbone(compose([f"backbone={name}"]))
    text = str(caught.value)
    assert "\n" not in text
    return text, re.findall(r"`(editkit [^`]+)`", text)


def publish(path, offline):
    """Put a small network of ADM's layout where a person would put the published file."""
    tensors = Weights()
    with torch.no_grad():
        adm(tensors, torch.zeros(1, 3, 16, 16), torch.zeros(1), ch=32, mult=(1, 2), layers=1, attended=(1,), head=64)
    offline.mkdir()
    torch.save(dict(tensors), offline / original(path)[1].name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_weights_name_the_commands_that_bring_them(name):
    text, commands = refusal(name)
    assert PUBLISHED[name] in text
    verbs = [command.split()[1] for command in commands]
    assert verbs == (["weights", "convert"] if name in CONVERTED else ["weights"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_in_the_registry(name):
    assert provider(PUBLISHED[name]) or original(PUBLISHED[name])


@pytest.mark.parametrize("name", CONVERTED)
def test_the_head_of_a_file_holds_the_commands_of_the_message(name):
    head = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    for command in refusal(name)[1]:
        assert f"#   {command}\n" in head
    entry, file = original(CONVERTED[name])
    assert (f"#   download {file.name} from {entry.page} into a folder DIR\n" in head) == (not file.sources)


def test_every_pixel_network_but_the_ddpms_of_the_registry_has_a_backbone():
    layouts = ("adm", "v-diffusion", "diffae")
    known = [(entry.name, file.name) for entry in entries().values() if entry.layout in layouts for file in entry.files]
    named = [(entry.name, file.name) for entry, file in map(original, CONVERTED.values())]
    assert sorted(known) == sorted(named) and len(known) == 16


@pytest.mark.parametrize("name", ["adm_cat256", "p2_ffhq256"])
def test_the_commands_work_as_they_stand(name, tmp_path, monkeypatch):
    publish(PATHS[name], tmp_path / "DIR")
    monkeypatch.setenv(OFFLINE_VARIABLE, "DIR")  # in place of a network
    fetch, convert = refusal(name)[1]
    assert run(shlex.split(fetch)[1:]) == 0
    text, left = refusal(name)
    assert left == [convert] and "fetched but not converted" in text
    assert run(shlex.split(convert)[1:]) == 0
    backbone = load_backbone(compose([f"backbone={name}"]))
    assert backbone.style == "adm" and backbone.sample_shape == (3, 16, 16)


def test_the_folder_of_weights_is_in_the_commands(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "store"))
    _, convert = refusal("ilvr_afhq_dog256")[1]
    assert convert == f"editkit convert {tmp_path}/store/ilvr/afhq_dog_4m.pt --licence 'MIT (repository)'"


def test_the_hub_is_never_asked_for_what_is_converted(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("nobody owns that name there"))
    with pytest.raises(UserError, match="then `editkit convert"):
        resolve("guided-diffusion/lsun_cat", download=True)


def test_originals_are_those_without_a_folder_of_their_own():
    assert original("guided-diffusion/lsun_cat")[1].name == "lsun_cat.pt"
    for name in ("guided-diffusion/lsun", "guided-diffusion", "google/ddpm-ema-cat-256", "irse50/model_ir_se50", "a/b/c"):
        assert original(name) is None
