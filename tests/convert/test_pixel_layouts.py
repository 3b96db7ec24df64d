"""DDPM and ADM checkpoints: what was converted computes what the layout's formulas say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel

from editkit.backbones.convert import adm as adm_layout
from editkit.backbones.convert import ddpm as ddpm_layout
from editkit.backbones.convert.layout import Source
from editkit.backbones.convert.layouts import find
from editkit.backbones.pixel import load_pixel
from editkit.backbones.wide_time import KEY
from editkit.errors import UsageError, UserError
from tests.convert.reference import Weights, adm, ddpm

TIMES = torch.tensor([3, 700])
DDPM = {"ch": 32, "mult": (1, 2), "layers": 1, "attended": (1,)}
ADM = {"ch": 32, "mult": (1, 2), "layers": 1, "attended": (1,), "head": 16}
HEAD = {"head_channels": "16"}


def noisy(size=16):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def made(network, **shape):
    """Return (tensors, the answer for `noisy` at `TIMES`) of a reference network."""
    weights = Weights()
    answer = network(weights, noisy(), TIMES, **shape)
    return dict(weights), answer


def source(tensors, name="model.pt", **settings):
    return Source(Path(name), tensors, settings)


def folder_of(tensors, path, layout, **settings):
    """Convert by hand, without files around it, and return the folder."""
    layout.convert(source(tensors, **settings)).write(path)
    return path


@pytest.mark.parametrize(
    "shape",
    [DDPM, DDPM | {"layers": 2, "mult": (1, 1, 2), "attended": (1,)}, DDPM | {"attended": (0, 1)}],
    ids=["small", "as published", "attends twice"],
)
@torch.no_grad()
def test_ddpm(tmp_path, shape):
    tensors, expected = made(ddpm, **shape)
    backbone = load_pixel(folder_of(tensors, tmp_path, ddpm_layout))
    assert (backbone(noisy(), TIMES).eps - expected).abs().max() < 1e-4
    assert backbone.style == "ddpm" and backbone.parameterization == "eps"
    assert backbone.schedule.table[0] == pytest.approx(1 - 1e-4) and len(backbone.schedule.table) == 1000


ADMS = {
    "small": ADM,
    "as published": ADM | {"mult": (1, 1, 2), "layers": 2, "attended": (1, 2)},
    "strided": ADM | {"residual": False},
    "time added": ADM | {"scale_shift": False, "attended": (0,)},
    "fixed variance": ADM | {"out": 3, "attended": ()},
    "half as wide at first": ADM | {"ch": 64, "mult": (0.5, 1, 1), "attended": (2,)},
    "wider at first": ADM | {"mult": (2, 1)},
    "new order": ADM | {"new_order": True},
}


@pytest.mark.parametrize("name", ADMS)
@torch.no_grad()
def test_adm(tmp_path, name):
    shape = ADMS[name]
    tensors, expected = made(adm, **shape)
    order = {"order": "new"} if shape.get("new_order") else {}
    backbone = load_pixel(folder_of(tensors, tmp_path, adm_layout, **HEAD, **order))
    pred = backbone(noisy(), TIMES)
    assert (pred.eps - expected[:, :3]).abs().max() < 1e-4
    if shape.get("out") != 3:
        assert (pred.features["variance"] - expected[:, 3:]).abs().max() < 1e-4
    h, finish = backbone.halves(noisy(), TIMES)
    assert torch.allclose(finish([h])[0].eps, pred.eps, atol=1e-5)
    assert backbone.style == ("ddpm" if shape.get("scale_shift") is False else "adm")


@pytest.mark.parametrize(
    ("layout", "network", "shape", "settings", "wrong"),
    [
        (ddpm_layout, ddpm, DDPM, {}, {"downsample_padding": 1}),
        (ddpm_layout, ddpm, DDPM, {}, {"flip_sin_to_cos": True}),
        (ddpm_layout, ddpm, DDPM, {}, {"freq_shift": 0}),
        (ddpm_layout, ddpm, DDPM, {}, {"attention_head_dim": 8}),
        (adm_layout, adm, ADM, HEAD, {"flip_sin_to_cos": False}),
        (adm_layout, adm, ADM, HEAD, {"freq_shift": 1}),
        (adm_layout, adm, ADM, HEAD, {"attention_head_dim": 32}),
    ],
    ids=lambda part: next(iter(part), "") if isinstance(part, dict) else "",
)
@torch.no_grad()
def test_each_of_these_details_is_told_apart(layout, network, shape, settings, wrong):
    """The comparison above would notice a network that is wrong in one detail alone."""
    tensors, expected = made(network, **shape)
    right = layout.to_unet(source(tensors, **settings))
    other = UNet2DModel(**(dict(right.config) | wrong))
    other.load_state_dict(right.state_dict())
    assert (right(noisy(), TIMES).sample - expected).abs().max() < 1e-4
    assert (other(noisy(), TIMES).sample - expected).abs().max() > 1e-3


def test_the_guards_of_the_norms_are_those_of_the_layout():
    assert ddpm_layout.to_unet(source(made(ddpm, **DDPM)[0])).config.norm_eps == 1e-6
    assert adm_layout.to_unet(source(made(adm, **ADM)[0], **HEAD)).config.norm_eps == 1e-5


@torch.no_grad()
def test_the_two_orders_of_the_attention_are_not_the_same():
    tensors, expected = made(adm, **ADM)
    wrong = adm_layout.to_unet(source(tensors, **HEAD, order="new"))
    assert (wrong(noisy(), TIMES).sample - expected).abs().max() > 1e-3


@torch.no_grad()
def test_a_class_conditional_network_runs_without_a_class(tmp_path):
    tensors, expected = made(adm, **ADM)
    converted = adm_layout.convert(source(tensors | {"label_emb.weight": torch.ones(10, 128)}, **HEAD))
    assert converted.card["classes"] == 10 and "without a class" in converted.news[0]
    converted.write(tmp_path)
    assert (load_pixel(tmp_path)(noisy(), TIMES).eps - expected[:, :3]).abs().max() < 1e-4


def test_the_size_follows_from_the_layout_and_can_be_given(tmp_path):
    tensors, _ = made(ddpm, **DDPM)
    assert load_pixel(folder_of(tensors, tmp_path / "a", ddpm_layout)).sample_shape == (3, 32, 32)  # 16x16 at level 1
    assert load_pixel(folder_of(tensors, tmp_path / "b", ddpm_layout, size="64")).sample_shape == (3, 64, 64)
    tensors, _ = made(adm, **ADM)
    backbone = load_pixel(folder_of(tensors, tmp_path / "c", adm_layout, **HEAD))
    assert backbone.sample_shape == (3, 16, 16) and backbone.bottleneck_shape == (64, 8, 8)


def test_a_wide_time_is_in_the_config_and_plain_diffusers_refuses_it(tmp_path):
    tensors, _ = made(adm, **ADMS["half as wide at first"])
    home = folder_of(tensors, tmp_path, adm_layout, **HEAD) / "unet"
    assert json.loads((home / "config.json").read_text())[KEY] == 64
    with pytest.raises((RuntimeError, ValueError)):
        UNet2DModel.from_pretrained(home, low_cpu_mem_usage=False)
    assert load_pixel(tmp_path, dtype="bfloat16").unet.dtype == torch.bfloat16
    plain = folder_of(made(adm, **ADM)[0], tmp_path / "plain", adm_layout, **HEAD) / "unet"
    assert KEY not in json.loads((plain / "config.json").read_text())


class Shapes(Weights):
    """Weights without values."""

    def __call__(self, name, *shape, **values):
        return self.setdefault(name, torch.empty(shape, device="meta"))


IMAGENET = {"ch": 256, "mult": (1, 1, 2, 2, 4, 4), "layers": 2, "attended": (3, 4, 5), "head": 64}
PUBLISHED = {
    "CelebA-HQ": (ddpm, 256, {"ch": 128, "mult": (1, 1, 2, 2, 4, 4), "layers": 2, "attended": (4,)}, 113_673_219),
    "CIFAR-10": (ddpm, 32, {"ch": 128, "mult": (1, 2, 2, 2), "layers": 2, "attended": (1,)}, 35_746_307),
    "AFHQ": (adm, 256, {"ch": 128, "mult": (1, 1, 2, 2, 4, 4), "layers": 1, "attended": (4,), "head": 64}, 93_563_910),
    "ImageNet 256": (adm, 256, IMAGENET, 552_814_086),
    "ImageNet 512": (adm, 512, IMAGENET | {"mult": (0.5, 1, 1, 2, 2, 4, 4), "attended": (4, 5, 6)}, 557_973_638),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_fit_without_settings(name):
    network, size, shape, parameters = PUBLISHED[name]
    tensors = Shapes()
    with torch.device("meta"), torch.no_grad():
        network(tensors, torch.empty(1, 3, size, size), torch.empty(1), **shape)
    layout = find("model", dict(tensors)).layout
    unet = (ddpm_layout if layout.name == "ddpm" else adm_layout).to_unet(source(dict(tensors)))
    assert unet.config.sample_size == size
    assert sum(p.numel() for p in unet.parameters()) == sum(t.numel() for t in tensors.values()) == parameters


def refused(layout, tensors, **settings):
    with pytest.raises(UserError) as caught:
        layout.to_unet(source(tensors, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_variants_that_cannot_be_expressed_are_refused_by_name():
    tensors, _ = made(ddpm, **DDPM)
    lost = {name: value for name, value in tensors.items() if name != "mid.block_1.conv2.bias"}
    assert "mid_block.resnets.0.conv2.bias, which is missing" in refused(ddpm_layout, lost)
    assert "extra.weight" in refused(ddpm_layout, tensors | {"extra.weight": torch.ones(1)})
    assert "add size=" in refused(ddpm_layout, made(ddpm, **DDPM | {"attended": ()})[0])
    tensors, _ = made(adm, **ADM)
    odd = {name: value for name, value in tensors.items() if not name.startswith("output_blocks.3.")}
    assert "variant that cannot be converted" in refused(adm_layout, odd)
    assert "extra.weight" in refused(adm_layout, tensors | {"extra.weight": torch.ones(1)}, **HEAD)
    wide = tensors | {"input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)}
    assert "takes 6 channels and gives 6" in refused(adm_layout, wide, **HEAD)


def test_settings_that_cannot_be_are_refused():
    tensors, _ = made(adm, **ADM)
    for settings, message in [
        ({"head_channels": "24"}, "does not divide the 64 channels"),
        ({"head_channels": "many"}, "not a whole number"),
        (HEAD | {"order": "odd"}, "choose legacy or new"),
    ]:
        with pytest.raises(UsageError, match=message):
            adm_layout.to_unet(source(tensors, **settings))
    with pytest.raises(UsageError, match="Choose linear or cosine"):
        adm_layout.convert(source(tensors, **HEAD, schedule="cosin"))


def test_the_schedule_can_be_the_cosine_one(tmp_path):
    tensors, _ = made(adm, **ADM)
    config = folder_of(tensors, tmp_path, adm_layout, **HEAD, schedule="cosine") / "scheduler" / "scheduler_config.json"
    said = json.loads(config.read_text())
    assert said["beta_schedule"] == "squaredcos_cap_v2" and said["variance_type"] == "learned_range"
