"""CLIP, ArcFace and LPIPS: what was converted computes what the published network's formulas say."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from editkit.backbones import arcface as arcface_network
from editkit.backbones.arcface import ArcFace, load_arcface
from editkit.backbones.clip import load_clip
from editkit.backbones.convert import clip, irse50, lpips
from editkit.backbones.convert.layout import Source
from editkit.backbones.identity import load_identity
from editkit.backbones.lpips import LPIPS, load_lpips
from editkit.errors import UserError
from tests.convert.reference import Weights, arcface, clip_image, clip_text

MERGES = [("f", "a"), ("c", "e</w>"), ("fa", "ce</w>"), ("o", "l"), ("ol", "d</w>")]
VOCABULARY = 512 + len(MERGES) + 2
TEXTS = ["an old face", "face"]
# in OpenAI's vocabulary the bytes come first in the order of printable characters, then the ends of words
IDS = {"a</w>": 256 + 64, "face</w>": 512 + 2, "old</w>": 512 + 4, "start": VOCABULARY - 2, "end": VOCABULARY - 1}


def vocabulary(folder: Path) -> Path:
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *(" ".join(pair) for pair in MERGES), "more than the model knows"]
    path = folder / clip.VOCABULARY
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def source(tensors, folder, name="model.pt", **settings):
    return Source(folder / name, tensors, settings)


@torch.no_grad()
def clip_tensors(length=9):
    weights = Weights()
    clip_image(weights, torch.zeros(1, 3, 32, 32), width=128, layers=2, patch=8, dim=16)
    clip_text(weights, torch.zeros(1, length, dtype=torch.long), width=64, layers=2, length=length, vocabulary=VOCABULARY, dim=16)
    tensors = {name: value.half().float() for name, value in weights.items()}
    weights.update(tensors)
    sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(length), "vocab_size": torch.tensor(VOCABULARY)}
    return weights, dict(weights) | sizes | {"logit_scale": torch.tensor(4.6)}


class Node(nn.Module):
    """A module for every place in the names of a state dict, so that it can be scripted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(tensors, path: Path) -> Path:
    root = Node()
    for name, value in tensors.items():
        *places, last = name.split(".")
        node = root
        for place in places:
            if not hasattr(node, place):
                node.add_module(place, Node())
            node = getattr(node, place)
        node.register_buffer(last, value.half() if value.is_floating_point() else value)
    torch.jit.script(root).save(str(path))
    return path


@torch.no_grad()
def test_clip(tmp_path):
    weights, tensors = clip_tensors()
    vocabulary(tmp_path)
    clip.convert(source(tensors, tmp_path)).write(tmp_path / "clip")
    encoder = load_clip(tmp_path / "clip")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pixels = encoder.preprocess(images)
    expected = F.normalize(clip_image(weights, pixels, width=128, layers=2, patch=8, dim=16), dim=-1)
    assert (encoder.image(images) - expected).abs().max() < 1e-4
    tokens = torch.tensor(
        [[IDS["start"], *encoder.tokenizer.encode("an", add_special_tokens=False), IDS["old</w>"], IDS["face</w>"], IDS["end"]]]
    )
    expected = clip_text(weights, tokens, width=64, layers=2, length=9, vocabulary=VOCABULARY, dim=16)
    assert (encoder.text(["an old face"]) - F.normalize(expected, dim=-1)).abs().max() < 1e-4
    assert encoder.tokenizer(["a face"])["input_ids"] == [[IDS["start"], IDS["a</w>"], IDS["face</w>"], IDS["end"]]]
    assert encoder.model.logit_scale == pytest.approx(4.6)
    assert encoder.text(["face " * 50]).shape == (1, 16), "longer texts than the model takes are cut"


@torch.no_grad()
def test_clip_from_an_archive_is_the_same(tmp_path):
    from editkit.backbones.convert.layouts import find
    from editkit.backbones.convert.reading import read_checkpoint

    _, tensors = clip_tensors()
    vocabulary(tmp_path)
    found = find("ViT.pt", read_checkpoint(scripted(tensors, tmp_path / "ViT.pt")))
    assert found.layout.name == "clip"
    clip.convert(source(found.tensors, tmp_path)).write(tmp_path / "archive")
    clip.convert(source(tensors, tmp_path)).write(tmp_path / "plain")
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.allclose(load_clip(tmp_path / "archive").image(images), load_clip(tmp_path / "plain").image(images), atol=1e-5)


def test_clip_needs_its_own_vocabulary(tmp_path):
    _, tensors = clip_tensors()
    with pytest.raises(UserError, match="add tokenizer=FILE"):
        clip.convert(source(tensors, tmp_path))
    with pytest.raises(UserError, match="nothing.txt is not there"):
        clip.convert(source(tensors, tmp_path, tokenizer="nothing.txt"))
    (tmp_path / "short.txt").write_text("header\na b\n")
    with pytest.raises(UserError, match="another vocabulary"):
        clip.convert(source(tensors, tmp_path, tokenizer=str(tmp_path / "short.txt")))
    (tmp_path / "odd.txt").write_text("header\na b c\n")
    with pytest.raises(UserError, match="no byte-pair vocabulary"):
        clip.convert(source(tensors, tmp_path, tokenizer=str(tmp_path / "odd.txt")))
    (tmp_path / "other").mkdir()
    used = source(tensors, tmp_path, tokenizer=str(vocabulary(tmp_path / "other")))
    clip.convert(used)
    assert used.companions == [tmp_path / "other" / clip.VOCABULARY]


def test_a_residual_clip_is_refused(tmp_path):
    _, tensors = clip_tensors()
    with pytest.raises(UserError, match="only those with a ViT"):
        clip.convert(source({name: value for name, value in tensors.items() if name != "visual.proj"}, tmp_path))


FACES = {"channels": (16, 32, 64), "blocks": (2, 1, 2), "dim": 8}


@torch.no_grad()
def test_arcface(tmp_path):
    weights = Weights()
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    faces = F.adaptive_avg_pool2d(images[:, :, 35:223, 32:220], (112, 112))
    expected = arcface(weights, faces, **FACES)
    converted = irse50.convert(source(dict(weights), tmp_path))
    (tmp_path / "net").mkdir()
    converted.write(tmp_path / "net")
    net = load_identity(tmp_path / "net")
    assert isinstance(net, ArcFace) and isinstance(load_arcface(str(tmp_path / "net")), ArcFace)
    assert net.config == {name: list(value) if isinstance(value, tuple) else value for name, value in FACES.items()}
    assert (net(images) - expected).abs().max() < 1e-4
    small = F.interpolate(images, size=(128, 128), mode="area")
    assert net(small).shape == (2, 8) and torch.allclose(net(small).norm(dim=1), torch.ones(2), atol=1e-5)


def test_arcface_has_the_published_sizes():
    with torch.device("meta"):
        net = ArcFace()
    assert sum(p.numel() for p in net.parameters()) == 43_797_696
    assert arcface_network.INPUT == 112


def test_arcface_crops_the_face_it_is_given():
    torch.manual_seed(0)
    net = ArcFace(**FACES).eval().requires_grad_(False)
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    outside = images.clone()
    outside[:, :, :35] = 0
    outside[:, :, :, 220:] = 0
    assert torch.equal(net(images), net(outside))
    inside = images.clone()
    inside[:, :, 35:60, 32:60] = 0
    assert not torch.allclose(net(images), net(inside))


def test_a_face_network_without_squeeze_is_refused(tmp_path):
    weights = Weights()
    with torch.no_grad():
        arcface(weights, torch.zeros(1, 3, 112, 112), **FACES)
    plain = {name: value for name, value in weights.items() if ".fc" not in name}
    with pytest.raises(UserError, match=r"variant that cannot be converted.*fc1"):
        irse50.convert(source(plain, tmp_path))


@pytest.mark.parametrize("kind", LPIPS, ids=lambda kind: kind.kind)
@torch.no_grad()
def test_lpips(tmp_path, kind):
    torch.manual_seed(0)
    published = kind().state_dict()
    features = {name: value for name, value in published.items() if name.startswith("features.")}
    heads = {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate(kind.widths)}
    torch.save(features | {"classifier.1.weight": torch.zeros(3)}, tmp_path / lpips.FILES[kind.kind].replace("*", "1"))
    converted = lpips.convert(source(heads, tmp_path, "heads.pth"))
    (tmp_path / "net").mkdir()
    converted.write(tmp_path / "net")
    net = load_lpips(tmp_path / "net")
    assert type(net) is kind
    a, b = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert net.distance(a, b).item() == pytest.approx(lpips_by_hand(features, list(heads.values()), a, b, kind.kind), rel=1e-4)
    assert net.distance(a, a).item() == 0


def lpips_by_hand(features, heads, a, b, kind) -> float:
    """The published distance from the features' names alone."""
    walk = {"lpips-alex": alex_stages, "lpips-vgg": vgg_stages, "lpips-squeeze": squeeze_stages}[kind]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    pairs = zip(walk(features, (a - shift) / scale), walk(features, (b - shift) / scale), heads, strict=True)
    return sum(float((((f / f.norm(dim=1)) - (g / g.norm(dim=1))) ** 2 * head).sum(1).mean()) for f, g, head in pairs)


def relu_conv(p, name, x, **how):
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **how).clamp(min=0)


def alex_stages(p, x):
    for place, how, pool in [(0, {"stride": 4, "padding": 2}, 0), (3, {"padding": 2}, 1), (6, {"padding": 1}, 1)]:
        x = relu_conv(p, f"features.{place}", F.max_pool2d(x, 3, 2) if pool else x, **how)
        yield x
    for place in (8, 10):
        x = relu_conv(p, f"features.{place}", x, padding=1)
        yield x


def vgg_stages(p, x):
    for stage, places in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]):
        x = F.max_pool2d(x, 2) if stage else x
        for place in places:
            x = relu_conv(p, f"features.{place}", x, padding=1)
        yield x


def squeeze_stages(p, x):
    x = relu_conv(p, "features.0", x, stride=2)
    yield x
    for places in [(3, 4), (6, 7), (9,), (10,), (11,), (12,)]:
        x = F.max_pool2d(x, 3, 2, ceil_mode=True) if places[0] in (3, 6, 9) else x
        for place in places:
            narrow = relu_conv(p, f"features.{place}.squeeze", x)
            wide = [relu_conv(p, f"features.{place}.expand{k}x{k}", narrow, padding=k // 2) for k in (1, 3)]
            x = torch.cat(wide, 1)
        yield x


def test_lpips_heads_need_their_own_features(tmp_path):
    heads = {f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in enumerate((64, 192, 384, 256, 256))}
    with pytest.raises(UserError, match="add features=FILE"):
        lpips.convert(source(heads, tmp_path, "alex.pth"))
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match="does not hold the features"):
        lpips.convert(source(heads, tmp_path, "alex.pth", features=str(tmp_path / "vgg.pth")))
    with pytest.raises(UserError, match="neither AlexNet"):
        lpips.convert(source({f"lin{k}.model.1.weight": torch.rand(1, 8, 1, 1) for k in range(5)}, tmp_path))


def test_the_two_files_of_a_vocabulary_agree():
    """Ids follow the published order: what is merged first has the lowest id above the letters."""
    tokenizer = clip.tokenizer_of(MERGES, 9)
    ids = [tokenizer.convert_tokens_to_ids("".join(pair)) for pair in MERGES]
    assert ids == list(range(512, 512 + len(MERGES))) and all(b - a == 1 for a, b in itertools.pairwise(ids))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (VOCABULARY - 2, VOCABULARY - 1)
    assert tokenizer.convert_tokens_to_ids("!") == 0 and tokenizer.convert_tokens_to_ids("~") == 93
