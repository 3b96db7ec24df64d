"""What the engine's settings do to the networks that a command loads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from editkit.app.loaded import load_backbone, load_editor, training_seconds
from editkit.backbones.pixel import PixelBackbone
from editkit.recipe import compose
from tests.app import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.backbone(tmp_path_factory.mktemp("model"))


def loaded(model, how, *settings):
    cfg = compose(["recipe=reconstruction", f"backbone.path={model}", *settings])
    return load_backbone(cfg) if how == "alone" else load_editor(cfg, "reconstruction").editor.backbone


@pytest.mark.parametrize("how", ["alone", "with its editor"])
def test_the_memory_layout_is_the_one_asked_for(model, how):
    plain, changed = loaded(model, how), loaded(model, how, "engine.channels_last=true")
    last = [one.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) for one in (plain, changed)]
    assert last == [False, True]
    assert plain.digest() == changed.digest()


@pytest.mark.parametrize("how", ["alone", "with its editor"])
def test_compilation_is_asked_of_the_network(model, how, monkeypatch):
    asked = []
    monkeypatch.setattr(PixelBackbone, "accelerate", lambda self, **settings: asked.append(settings["compile"]) or self)
    loaded(model, how)
    loaded(model, how, "engine.compile=true")
    assert asked == [False, True]


@pytest.mark.parametrize("native", [True, False])
def test_bf16_is_what_the_device_computes_in_or_fp32(model, monkeypatch, recwarn, native):
    monkeypatch.setattr("editkit.app.device.computes_bf16", lambda device: native)
    cfg = compose(["recipe=reconstruction", f"backbone.path={model}"])
    backbones = [
        load_backbone(cfg, device="cpu", dtype="bf16"),
        load_editor(cfg, "reconstruction", device="cpu", dtype="bf16").editor.backbone,
    ]
    dtype = torch.bfloat16 if native else torch.float32
    assert [one.unet.conv_in.weight.dtype for one in backbones] == [dtype, dtype]
    assert [str(one.message) for one in recwarn if "bf16" in str(one.message)] == (
        [] if native else ["cpu does not compute in bf16 and is slow to imitate it: taking fp32 instead"] * 2
    )


def test_seconds_of_training_are_those_of_all_parts_or_unknown():
    part = lambda **card: SimpleNamespace(card=card)  # noqa: E731
    assert training_seconds([part(training_seconds=3.0), part(training_seconds=4)]) == 7.0
    assert training_seconds([part(training_seconds=3.0), part()]) is None and training_seconds([]) is None
