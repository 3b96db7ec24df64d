"""Diffusion autoencoders: what was converted computes what the published networks' formulas say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from editkit.app.convert import ConvertOptions, convert
from editkit.backbones.convert.layouts import find
from editkit.backbones.diffae import load_diffae
from editkit.backbones.semantic_codes import AttributeClassifier, CodeScale, LatentDDIM
from editkit.errors import UserError
from editkit.networks.skip_mlp import SkipLayer
from editkit.networks.two_conditions import TwoConditions
from editkit.types import Condition
from tests.convert.reference import Weights, adm, attend, swish

SIDE, CODE, WIDTH, LAYERS = 16, 20, 24, 4
TIMES = torch.tensor([37, 913])


def drawn(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoder(p, x, widths=(32, 64, 64), blocks=2):
    """The published encoder: blocks of one convolution, attention at 16 pixels and in the middle, a mean at the end."""

    def block(name, x, width, resize=torch.clone):
        h = p.conv(f"{name}.in_layers.2", resize(swish(p.group_norm(f"{name}.in_layers.0", x, 1e-5))), width, 3)
        x = resize(x)
        return h + (x if x.shape[1] == width else p.conv(f"{name}.skip_connection", x, width, 1))

    h, place = p.conv("input_blocks.0.0", x, widths[0], 3), 0
    for level, width in enumerate(widths):
        for _ in range(blocks):
            place += 1
            h = block(f"input_blocks.{place}.0", h, width)
            h = attend(p, f"input_blocks.{place}.1", h, None) if h.shape[2] == 16 else h
        if level + 1 < len(widths):
            place += 1
            h = block(f"input_blocks.{place}.0", h, width, lambda x: F.avg_pool2d(x, 2))
    h = block("middle_block.2", attend(p, "middle_block.1", block("middle_block.0", h, width), None), width)
    return p.conv("out.3", swish(p.group_norm("out.0", h, 1e-5)).mean((2, 3), keepdim=True), CODE, 1).flatten(1)


def sinusoid(t, width):
    angles = t[:, None].float() * 10000 ** (-torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], 1)


def latent(p, z, t):
    """The published latent network: scaled by the time before it is normalised, the input beside every layer's but the first."""
    emb = p.line("time_embed.2", swish(p.line("time_embed.0", sinusoid(t, 64), CODE)), CODE)
    h = z
    for n in range(LAYERS - 1):
        h = p.line(f"layers.{n}.linear", torch.cat([h, z], 1) if n else h, WIDTH)
        h = h * (1 + p.line(f"layers.{n}.linear_emb", swish(emb), WIDTH))
        h = swish(p.layer_norm(f"layers.{n}.norm", h))
    return p.line(f"layers.{LAYERS - 1}.linear", torch.cat([h, z], 1), CODE)


@torch.no_grad()
def published():
    """Return the autoencoder's training file, and what it computes."""
    net, enc = Weights(), Weights(1)
    code = encoder(enc, drawn(2, 3, SIDE, SIDE).tanh())
    eps = adm(
        net, drawn(2, 3, SIDE, SIDE, seed=6), TIMES, ch=32, mult=(1, 2), layers=2, attended=(0,), head=None, out=3, code=code
    )
    own = {name.replace("time_embed.", "time_embed.time_embed."): value for name, value in net.items()}
    own |= {f"encoder.{name}": value for name, value in enc.items()}
    raw = {f"model.{name}": torch.zeros_like(value) for name, value in own.items()}
    return raw | {f"ema_model.{name}": value for name, value in own.items()} | {"x_T": drawn(1, 3, SIDE, SIDE)}, code, eps


def statistics():
    return {"conds_mean": drawn(1, CODE, seed=7), "conds_std": drawn(1, CODE, seed=8).abs() + 0.5}


@torch.no_grad()
def published_latent():
    p = Weights(2)
    eps = latent(p, drawn(2, CODE), TIMES)
    own = {f"ema_model.latent_net.{name}": value for name, value in p.items()}
    own |= {name.replace("linear_emb", "cond_layers.1"): value for name, value in own.items() if "linear_emb" in name}
    return published()[0] | own | statistics(), eps


def published_classifier():
    weight, bias = drawn(40, CODE), drawn(40, seed=9)
    average = {"ema_classifier.weight": 2 * weight, "ema_classifier.bias": bias}
    return {"classifier.weight": weight, "classifier.bias": bias} | average | statistics()


def converted(tensors, folder, layout=None):
    torch.save({"state_dict": tensors, "global_step": 3, "hyper_parameters": {"seed": 0}}, folder / "last.ckpt")
    return convert(ConvertOptions(source=folder / "last.ckpt", layout=layout))


def scaled_before_the_time(self, both):
    time, code = both.split([self.time.in_features, self.code.in_features], 1)
    scale, shift = self.time(time).chunk(2, 1)
    return torch.cat([(1 + self.code(code)) * (1 + scale) - 1, shift], 1)


def normalised_before_the_time(self, x, emb):
    return F.silu(self.norm(self.linear(x)) * (1 + self.linear_emb(F.silu(emb))))


@pytest.mark.parametrize("mistake", [None, scaled_before_the_time], ids=["", "z first"])
@torch.no_grad()
def test_a_converted_autoencoder_computes_what_the_published_one_does(tmp_path, monkeypatch, mistake):
    if mistake:
        monkeypatch.setattr(TwoConditions, "forward", mistake)
    tensors, code, eps = published()
    target, told = converted(tensors, tmp_path)
    assert told[0].startswith("diffae: ") and f"code {CODE}" in told[0]
    backbone = load_diffae(target)
    assert backbone.sample_shape == (3, SIDE, SIDE) and backbone.bottleneck_shape == (64, 8, 8) and backbone.style == "adm"
    assert (backbone.semantic_code(drawn(2, 3, SIDE, SIDE).tanh()) - code).abs().max() < 1e-4 * code.abs().max()
    found = backbone(drawn(2, 3, SIDE, SIDE, seed=6), TIMES, Condition(vector=code)).eps
    assert ((found - eps).abs().max() < 1e-4 * eps.abs().max()) == (mistake is None)


@pytest.mark.parametrize("mistake", [None, normalised_before_the_time], ids=["", "norm first"])
@torch.no_grad()
def test_a_converted_latent_network_computes_what_the_published_one_does(tmp_path, monkeypatch, mistake):
    if mistake:
        monkeypatch.setattr(SkipLayer, "forward", mistake)
    tensors, eps = published_latent()
    target, told = converted(tensors, tmp_path)
    assert told[0].startswith("diffae-latent: ") and "--layout diffae" in told[1]
    net = LatentDDIM.load(target)
    pred = net(drawn(2, CODE), TIMES)
    assert ((pred.eps - eps).abs().max() < 1e-4 * eps.abs().max()) == (mistake is None)
    for scale, name in ((net.scale.mean, "conds_mean"), (net.scale.std, "conds_std")):
        assert torch.equal(scale, tensors[name][0])


def test_of_a_latent_file_the_autoencoder_can_be_asked_for(tmp_path):
    tensors, _ = published_latent()
    target, told = converted(tensors, tmp_path, layout="diffae")
    assert told[0].startswith("diffae: ") and load_diffae(target).code_width == CODE


def unnormalised(self, code):
    return code


def not_centred(self, code):
    return code / self.std


@pytest.mark.parametrize("mistake", [None, unnormalised, not_centred])
@torch.no_grad()
def test_a_converted_classifier_reads_normalised_codes(tmp_path, monkeypatch, mistake):
    if mistake:
        monkeypatch.setattr(CodeScale, "normalize", mistake)
    tensors = published_classifier()
    target, told = converted(tensors, tmp_path)
    assert told[0].startswith("diffae-classifier: attributes 40")
    net, code = AttributeClassifier.load(target), drawn(3, CODE, seed=1)
    wanted = F.linear(
        (code - tensors["conds_mean"]) / tensors["conds_std"], tensors["classifier.weight"], tensors["classifier.bias"]
    )
    assert torch.allclose(net(code), wanted, atol=1e-5) == (mistake is None)
    assert len(set(net.attributes)) == 40 and net.attributes == sorted(net.attributes)
    assert net.attributes[20] == "Male" and net.attributes[31] == "Smiling"


def test_other_classifiers_count_their_attributes(tmp_path):
    tensors = {name: value[:1] if "classifier" in name else value for name, value in published_classifier().items()}
    assert AttributeClassifier.load(converted(tensors, tmp_path)[0]).attributes == ["attribute_0"]


def test_what_is_cut_off_or_a_variant_is_refused(tmp_path):
    tensors, _, _ = published()
    with pytest.raises(UserError, match="variant that cannot be converted"):
        converted(tensors | {"ema_model.encoder.input_blocks.1.0.out_layers.3.weight": torch.zeros(32, 32, 3, 3)}, tmp_path)
    classifier = {name: value for name, value in published_classifier().items() if name != "conds_std"}
    with pytest.raises(UserError, match="lacks conds_std"):
        converted(classifier, tmp_path)
    assert find("last.ckpt", {"state_dict": tensors}).layout.name == "diffae"
