"""Inversion of a backbone: with and without a cache."""

from __future__ import annotations

import torch

from editkit.backbones.inversion import Inversion
from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.invert import DDIM, FixedPoint
from tests.methods.asyrp_parts import Images, tiny_backbone


@torch.no_grad()
def test_it_is_the_inverter_s_own_trajectory_cached_or_not(tmp_path):
    backbone, x0 = tiny_backbone(), Images(2).images
    levels, cache = backbone.schedule.levels(5), InversionCache(tmp_path)
    for inverter, given in ((DDIM(query="source"), None), (FixedPoint(2), FixedPoint(2))):
        inversion, expected = Inversion(backbone, given), inverter.invert(backbone, x0, levels)
        assert torch.equal(inversion(x0, levels).x, expected.x)
        assert torch.equal(inversion(x0, levels, cache).x, expected.x)
        with count_calls(backbone, flops=False) as counter:
            assert torch.equal(inversion(x0, levels, cache).x, expected.x)
        assert counter.calls == 0


@torch.no_grad()
def test_the_cache_tells_weights_and_precisions_apart(tmp_path):
    x0, cache = Images(2).images, InversionCache(tmp_path)
    for backbone in (tiny_backbone(), tiny_backbone(seed=9), tiny_backbone().to(torch.bfloat16)):
        with count_calls(backbone, flops=False) as counter:
            Inversion(backbone)(x0, backbone.schedule.levels(4), cache)
        assert counter.calls == 3


@torch.no_grad()
def test_weights_are_hashed_once_and_only_for_a_cache(tmp_path, monkeypatch):
    backbone, x0, hashed = tiny_backbone(), Images(2).images, []
    digest = backbone.digest
    monkeypatch.setattr(backbone, "digest", lambda: hashed.append(1) or digest())
    inversion, levels = Inversion(backbone), backbone.schedule.levels(4)
    inversion(x0, levels)
    assert not hashed
    for n in (4, 5):
        inversion(x0, backbone.schedule.levels(n), InversionCache(tmp_path))
    assert len(hashed) == 1
