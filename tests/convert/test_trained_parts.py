"""Trained edits that authors published: Asyrp's delta blocks and DiffusionCLIP's fine-tuned networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from editkit.backbones import registry
from editkit.backbones.convert import asyrp, diffusionclip
from editkit.backbones.convert.ddpm import to_unet
from editkit.backbones.convert.layout import Source
from editkit.backbones.convert.layouts import find
from editkit.backbones.pixel import PixelBackbone
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.asyrp.editor import attribute_of
from editkit.training.artefact import Artefact
from tests.convert.reference import Weights, ddpm, delta

PUBLISHED = [file.name for file in registry.entries()["asyrp-deltas"].files]
SMILING = "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"
DDPM = {"ch": 32, "mult": (1, 2), "layers": 1, "attended": (1,)}


class Middle(torch.nn.Module):
    """A backbone of the published size, as far as a delta block knows it."""

    bottleneck_shape, time_width = (512, 8, 8), 512

    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")


def block(style, channels=512, width=512):
    h = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    temb = torch.randn(2, width, generator=torch.Generator().manual_seed(2))
    weights = Weights()
    return h, temb, delta(weights, h, temb, style), dict(weights)


def converted(tensors, name=SMILING, prompt=None, **settings):
    return asyrp.convert(Source(Path(name), tensors, settings, prompt))


@pytest.mark.parametrize("style", ["ddpm", "adm"])
@torch.no_grad()
def test_a_published_delta_runs_on_a_512_channel_middle(style, tmp_path):
    h, temb, expected, tensors = block(style)
    content = {"0": tensors, "optimizer": {"state": {0: {"momentum_buffer": None}}, "param_groups": [{"lr": 0.5}]}}
    found = find(SMILING, content)
    assert (found.layout.name, found.place) == ("asyrp", "0")
    made = converted(found.tensors)
    path = Artefact(made.card["name"], made.tensors, card=made.card).save(tmp_path / "smiling.safetensors")
    attribute = attribute_of(Artefact.load(path), Middle())
    assert (attribute.delta(h, temb, 600.0) - expected).abs().max() < 1e-4
    assert sum(tensor.numel() for tensor in made.tensors.values()) == {"ddpm": 788_992, "adm": 790_016}[style]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_name_tells_texts_and_times(name):
    card = converted(block("ddpm", 32, 32)[3], name).card
    assert card["prompt"] and card["source_prompt"] and card["prompt"] != card["source_prompt"]
    assert 300 < card["t_edit"] < 520 and 160 < card["t_boost"] < 300
    assert card["n_train"] == 40 and card["t_start"] is None


def test_there_are_35_of_them():
    assert len(PUBLISHED) == 35


def test_the_papers_times_are_kept_and_assumed_ones_are_said():
    tensors = block("ddpm", 32, 32)[3]
    made = converted(tensors)
    assert (made.card["t_edit"], made.card["t_boost"], made.card["prompt"], made.news) == (513, 167, "smiling face", ())
    assumed = converted(tensors, "church_gothic_LC_church_outdoor_t999_ninv40_ngen40_0.pth")
    assert assumed.card["t_edit"] == 366 and "t_edit= sets it" in assumed.news[0]
    given = converted(tensors, "church_gothic_LC_church_outdoor_t999_ninv40_ngen40_0.pth", t_edit="400", t_boost="0")
    assert (given.card["t_edit"], given.card["t_boost"], given.news) == (400, 0, ())


def test_a_name_of_ones_own_needs_its_times():
    tensors = block("ddpm", 32, 32)[3]
    with pytest.raises(UsageError, match="add t_edit= and t_boost="):
        converted(tensors, "mine.pth")
    own = converted(tensors, "mine.pth", "a purple face", t_edit="500", t_boost="0").card
    assert (own["name"], own["prompt"], own["t_edit"]) == ("a purple face", "a purple face", 500)
    assert converted(tensors, "mine.pth", t_edit="500", t_boost="0").card["name"] == "mine"


def test_a_delta_of_another_make_is_refused():
    tensors = block("ddpm", 32, 32)[3] | {"norm3.weight": torch.ones(32)}
    with pytest.raises(UserError, match="no delta block that Asyrp published"):
        converted(tensors)


@torch.no_grad()
def test_diffusionclips_network_becomes_whole_weights_of_the_backbone():
    weights = Weights()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([100])
    expected = ddpm(weights, x, t, **DDPM)
    source = Source(Path("curly_hair_t401.pth"), dict(weights), {"size": "16"}, "curly hair")
    found = find(source.name, [{"module." + name: value for name, value in weights.items()}], layout="diffusionclip")
    assert found.tensors.keys() == weights.keys()
    made = diffusionclip.convert(source)
    assert (made.card["t0"], made.card["kind"], made.card["bottleneck_shape"]) == (401, "weights", [64, 8, 8])
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    backbone = PixelBackbone(to_unet(Source(source.path, zeros, source.settings)), Schedule.linear())
    assert made.tensors.keys() == backbone.state_dict().keys()
    backbone.load_state_dict(made.tensors)
    assert (backbone(x, t).eps - expected).abs().max() < 1e-4


def test_a_fine_tuned_network_without_its_time_is_refused():
    weights = Weights()
    ddpm(weights, torch.randn(1, 3, 16, 16), torch.tensor([100]), **DDPM)
    with pytest.raises(UsageError, match="add t0="):
        diffusionclip.convert(Source(Path("smile.pth"), dict(weights)))
    assert diffusionclip.convert(Source(Path("smile.pth"), dict(weights), {"t0": "500"})).card["t0"] == 500
    assert find("smile_t500.pth", dict(weights)).layout.name == "ddpm", "it is a network like any, unless --layout says more"
