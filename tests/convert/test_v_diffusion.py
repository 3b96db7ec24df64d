"""v-diffusion: what was converted computes what the published networks' formulas say, from the names of their tensors alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from editkit.app.convert import ConvertOptions, convert
from editkit.backbones.convert import v_diffusion
from editkit.backbones.convert.layout import Source
from editkit.backbones.convert.layouts import find
from editkit.backbones.v_diffusion import load_v_diffusion
from editkit.backbones.weightless import weightless
from editkit.errors import UserError
from editkit.networks.v_diffusion import log_snr
from editkit.types import Condition, EditRequest
from tests.convert.reference import Weights

WIDTHS = (8, 8, 16, 16, 16, 16, 24)  # of the seven levels
SIDE, HEAD, DIM, MAPPED = 64, 8, 12, 10


class Published:
    """The published networks by hand: `conditional` is cc12m_1, else wikiart_256. Fills the weights that it is asked for."""

    def __init__(self, weights: Weights, conditional: bool) -> None:
        self.w, self.conditional = weights, conditional

    def __call__(self, x, u, embedding=None):
        self.vector = self.mapped(u, embedding) if self.conditional else None
        told = u if self.conditional else torch.log(torch.cos(u * math.pi / 2) ** 2 / torch.sin(u * math.pi / 2) ** 2)
        planes = self.fourier("timestep_embed", told, 16)[:, :, None, None].repeat(1, 1, *x.shape[2:])
        return self.level("net.", 0, torch.cat([x, planes], 1))

    def fourier(self, name, value, width):
        angles = 2 * math.pi * value[:, None] @ self.w(f"{name}.weight", width // 2, 1).T
        return torch.cat([angles.cos(), angles.sin()], 1)

    def mapped(self, u, embedding):
        unit = embedding / embedding.norm(dim=1, keepdim=True).clamp(min=1e-12) * DIM**0.5
        x = torch.cat([unit, self.fourier("mapping_timestep_embed", u, 128)], 1)
        first = self.w.line("mapping.0.main.2", self.w.line("mapping.0.main.0", x, MAPPED).relu(), MAPPED).relu()
        x = first + F.linear(x, self.w("mapping.0.skip.weight", MAPPED, DIM + 128))
        return x + self.w.line("mapping.1.main.2", self.w.line("mapping.1.main.0", x, MAPPED).relu(), MAPPED)

    def level(self, at, k, x):
        width, above, n = WIDTHS[k], WIDTHS[k - 1] if k else 3, 0
        if k:
            x, n = F.avg_pool2d(x, 2), 1
        if k == 6:
            for out in [width] * 7 + [above]:
                x, n = self.block(at, n, k, x, width, out)
        else:
            for _ in range(4):
                x, n = self.block(at, n, k, x, width, width)
            inner = self.level(f"{at}{n}.main.", k + 1, x)
            x, n = torch.cat([inner, x] if self.conditional else [x, inner], 1), n + 1
            for out in [width] * 3 + [above]:
                x, n = self.block(at, n, k, x, width, out, last=k == 0 and out == 3)
        if k:
            how = {"mode": "bilinear", "align_corners": False} if self.conditional else {"mode": "nearest"}
            x = F.interpolate(x, scale_factor=2, **how)
        return x

    def block(self, at, n, k, x, width, out, last=False):
        name, after = f"{at}{n}.main", 4 if self.conditional else 2
        y = self.activated(name, 1, self.w.conv(f"{name}.0", x, width, 3))
        y = self.w.conv(f"{name}.{after}", y, out, 3)
        y = y if last else self.activated(name, after + 1, y)
        side = x if x.shape[1] == out else self.w.conv(f"{at}{n}.skip", x, out, 1, bias=False)
        return self.attended(f"{at}{n + 1}", y + side, n + 2) if k >= 4 else (y + side, n + 1)

    def activated(self, name, n, x):
        if self.conditional:
            flat = x.flatten(1)
            x = ((flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()).view_as(x)
            both = F.linear(self.vector, self.w(f"{name}.{n + 1}.layer.weight", 2 * x.shape[1], MAPPED))[:, :, None, None]
            scale, shift = both[:, : x.shape[1]], both[:, x.shape[1] :]
            x = x * (1 + scale) + shift
        return x.relu()

    def attended(self, name, x, n):
        batch, width, height, side = x.shape
        y = x
        if self.conditional:
            scale, shift = (self.w(f"{name}.norm.{kind}", width, spread=0.2) for kind in ("weight", "bias"))
            y = F.group_norm(x, 1, scale, shift)
        q, k, v = self.w.conv(f"{name}.qkv_proj", y, 3 * width, 1).view(batch, 3, width // HEAD, HEAD, height * side).unbind(1)
        weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(HEAD**0.5).softmax(3)
        found = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(x.shape)
        return x + self.w.conv(f"{name}.out_proj", found, width, 1), n


def inputs():
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(2, 3, SIDE, SIDE, generator=generator),
        torch.tensor([0.3, 0.9957]),
        torch.randn(2, DIM, generator=generator),
    )


def published(conditional):
    weights = Weights()
    x, u, embedding = inputs()
    with torch.no_grad():
        v = Published(weights, conditional)(x, u, embedding)
    return weights, v


def source(tensors, folder, **settings):
    return Source(folder / "model.pth", tensors, {"head_channels": str(HEAD), "size": str(SIDE)} | settings)


def loaded(tensors, folder):
    (folder / "out").mkdir()
    v_diffusion.convert(source(tensors, folder)).write(folder / "out")
    return load_v_diffusion(folder / "out")


@pytest.mark.parametrize("conditional", [True, False], ids=["cc12m_1", "wikiart_256"])
@torch.no_grad()
def test_a_converted_network_computes_what_the_published_one_does(tmp_path, conditional):
    weights, v = published(conditional)
    assert find("model.pth", dict(weights)).layout.name == "v-diffusion"
    backbone = loaded(weights, tmp_path)
    x, u, embedding = inputs()
    assert backbone.sample_shape == (3, SIDE, SIDE) and backbone.bottleneck_shape == (24, 1, 1)
    pred = backbone(x, 1000 * u, Condition(vector=embedding) if conditional else None)
    a, s = (f(u * math.pi / 2)[:, None, None, None] for f in (torch.cos, torch.sin))
    for found, wanted in (
        (backbone.schedule.output(pred, 1000 * u, "v"), v),
        (pred.x0, a * x - s * v),
        (pred.eps, s * x + a * v),
    ):
        assert (found - wanted).abs().max() < 1e-4 * v.abs().max()
    one = backbone(x[:1], 300.0, Condition(vector=embedding[:1]))
    assert (one.x0 - pred.x0[:1]).abs().max() < 1e-4 * v.abs().max()


@torch.no_grad()
def test_each_network_is_told_the_time_in_its_own_way(tmp_path):
    """The time itself to one, the log-SNR to the other; given the other's, either would compute something else."""
    backbone = loaded(published(False)[0], tmp_path)
    frequencies = backbone.unet.network.timestep_embed.weight[:, 0]
    told = backbone.time_embedding(300.0)[0]
    u = torch.tensor(0.3)
    snr = 2 * torch.log(torch.cos(u * math.pi / 2) / torch.sin(u * math.pi / 2))
    torch.testing.assert_close(told[:8], torch.cos(2 * math.pi * snr * frequencies), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(told[:8], torch.cos(2 * math.pi * u * frequencies), atol=0.1)
    assert log_snr(torch.tensor([0.0, 1.0])).isfinite().all() and backbone(torch.zeros(1, 3, SIDE, SIDE), 0.0).x0.isfinite().all()


@torch.no_grad()
def test_no_text_is_an_embedding_of_zeros(tmp_path):
    backbone = loaded(published(True)[0], tmp_path)
    x, _, embedding = inputs()
    untold = backbone.condition(EditRequest("a", prompt=""))
    assert torch.equal(untold.vector, torch.zeros(1, DIM))
    assert torch.equal(backbone(x, 500.0).x0, backbone(x, 500.0, untold).x0)
    assert not torch.allclose(backbone(x, 500.0).x0, backbone(x, 500.0, Condition(vector=embedding)).x0, atol=1e-2)
    with pytest.raises(UserError, match=r"backbone\.clip"):
        backbone.condition(EditRequest("a", prompt="a dog"))


def test_a_variant_is_refused(tmp_path):
    weights, _ = published(False)
    deeper = dict(weights) | {"net.4.main.5.main.5.main.5.main.9.main.9.main.9.main.1.main.0.weight": torch.zeros(8, 8, 3, 3)}
    with pytest.raises(UserError, match="variant that cannot be converted"):
        v_diffusion.convert(source(deeper, tmp_path))
    flat = {name: value for name, value in weights.items() if ".main.9.main.9." not in name}
    with pytest.raises(UserError, match="lacks net"):
        v_diffusion.convert(source(flat, tmp_path))


def test_the_command_converts_it(tmp_path):
    weights, _ = published(True)
    torch.save(dict(weights), tmp_path / "tiny.pth")
    target, told = convert(ConvertOptions(source=tmp_path / "tiny.pth", settings=[f"head_channels={HEAD}", f"size={SIDE}"]))
    assert "conditional True" in told[0] and load_v_diffusion(target).unet.network.embedding == DIM


@pytest.mark.parametrize(("name", "count"), [("cc12m_1_cfg", 602_895_947), ("wikiart_256", 291_054_347)])
def test_the_published_sizes(name, count):
    with weightless():
        network = load_v_diffusion(f"v-diffusion/{name}").unet.network
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == count
    assert (network.embedding is not None) == (name == "cc12m_1_cfg")
