"""Editors that begin with an inversion: what they prepare."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.metrics.images import psnr
from editkit.training.inverting import InvertingEditor
from tests.methods.asyrp_parts import Images, tiny_backbone


def editor_of(backbone, start=500, **settings):
    return InvertingEditor(backbone, start, **{"n_inv": 6, "n_test": 4, "cache": None, "measure": True} | settings)


@torch.no_grad()
@pytest.mark.parametrize("start", [500, None])
def test_states_and_figures_are_those_of_inversion_and_the_way_back(start):
    backbone, images = tiny_backbone(), Images(3)
    with count_calls(backbone, flops=False) as counter:
        state = editor_of(backbone, start).prepare(images.requests())
    assert counter.evaluations == 3 * (5 + 4) and state.calls == [5] * 3
    up, down = (backbone.schedule.levels(n, start=start) for n in (6, 4))
    x = DDIM(query="source").invert(backbone, images.images, up).x
    assert torch.equal(state.x, x)
    assert state.reconstruction_psnr == psnr(sample(backbone, x, down), images.images).tolist()


@torch.no_grad()
def test_requests_keep_their_places_whatever_steps_they_ask_for():
    """An easy wrong version returns the groups one after the other. Steps that equal one of the defaults are no special case."""
    backbone, images = tiny_backbone(), Images(4)
    editor, requests = editor_of(backbone), images.requests()
    mixed = [request.with_(steps=n) for request, n in zip(requests, (None, 3, 6, None), strict=True)]
    state = editor.prepare(mixed)
    assert state.calls == [5, 2, 5, 5]
    for row, request in enumerate(mixed):
        alone = editor.prepare([request])
        assert torch.allclose(state.x[row], alone.x[0], atol=1e-4)
        assert state.reconstruction_psnr[row] == pytest.approx(alone.reconstruction_psnr[0], abs=1e-3)


@torch.no_grad()
def test_nothing_is_measured_unless_asked_and_a_cache_saves_the_calls(tmp_path):
    backbone, images = tiny_backbone(), Images(2)
    editor = editor_of(backbone, measure=False, cache=InversionCache(tmp_path))
    first = editor.prepare(images.requests())
    with count_calls(backbone, flops=False) as counter:
        again = editor.prepare(images.requests())
    assert counter.calls == 0 and torch.equal(first.x, again.x)
    assert again.reconstruction_psnr == [] and again.calls == [5, 5]
