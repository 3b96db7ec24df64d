"""Network calls of every algorithm, pinned (the engine's cost table)."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from editkit.engine.count import count_calls
from editkit.engine.direct import Beside
from editkit.engine.guidance import ClassifierFree, Energy, Guided
from editkit.engine.invert import (
    DDIM,
    EDICT,
    OBELM,
    CycleDiffusion,
    Direct,
    EditFriendly,
    FixedPoint,
    NegativePrompt,
    NullText,
    ReNoise,
    SDEdit,
    replay,
)
from editkit.engine.sample import sample
from editkit.types import Condition, Prediction
from tests.engine.stand_ins import random

N = 12
UNCOND = Condition(vector=torch.zeros(1, 48))


def inverted(inverter):
    return lambda net, x, levels, noise: inverter.invert(net, x, levels, noise=noise)


def energy(x0, t):
    return x0.square().flatten(1).sum(1)


def guided(net, x, levels, noise, *, guidance):
    cond = Condition(vector=random((len(x), 48), 4))
    return sample(net, x, levels, cond, guidance=guidance)


COSTS = {  # calls in sequence, samples evaluated per image
    "sampling": (lambda net, x, levels, noise: sample(net, x, levels), N, N),
    "classifier-free": (partial(guided, guidance=ClassifierFree(7.5, UNCOND)), N, 2 * N),
    "classifier-free, weight 1": (partial(guided, guidance=ClassifierFree(1.0, UNCOND)), N, N),
    "energy": (partial(guided, guidance=Energy(energy, 0.1)), N, N),
    "ddim inversion": (inverted(DDIM()), N - 1, N - 1),
    "fixed point": (inverted(FixedPoint(3, tolerance=0)), (N - 1) * 4, (N - 1) * 4),
    "edit-friendly": (inverted(EditFriendly()), N - 1, N - 1),
    "edit-friendly, skip": (inverted(EditFriendly(skip=5)), N - 6, N - 6),
    "edit-friendly, in time batches": (inverted(EditFriendly(time_batch=100)), 1, N - 1),
    "renoise": (inverted(ReNoise(3, (2, 4), early=0.0)), (N - 1) * 4, (N - 1) * 4),
    "edict": (inverted(EDICT()), 2 * (N - 1), 2 * (N - 1)),
    "o-belm": (inverted(OBELM()), N - 1, N - 1),
    "cycle-diffusion": (inverted(CycleDiffusion()), N - 1, N - 1),
    "cycle-diffusion, in time batches": (inverted(CycleDiffusion(time_batch=100)), 1, N - 1),
    "direct": (inverted(Direct()), N - 1, N - 1),
    "noised start": (inverted(SDEdit(0.5)), 0, 0),
    "noised start and back": (
        lambda net, x, levels, noise: sample(net, **replay(SDEdit(0.5).invert(net, x, levels, noise=noise))),
        N // 2,
        N // 2,
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_cost(name, gaussian, x0, noise):
    run, calls, evaluations = COSTS[name]
    with count_calls(gaussian) as counter:
        run(gaussian, x0, gaussian.schedule.levels(N), noise(x0))
    assert (counter.calls, counter.evaluations) == (calls, evaluations * len(x0))
    assert counter.per_image(len(x0))["evaluations"] == evaluations


def test_guided_source_of_edit_friendly_inversion(gaussian, x0, noise):
    with count_calls(gaussian) as counter:
        guided = Guided(gaussian, ClassifierFree(3.5, UNCOND))
        EditFriendly(time_batch=4).invert(guided, x0, gaussian.schedule.levels(N), UNCOND, noise=noise(x0))
    assert (counter.calls, counter.evaluations) == (3, 2 * (N - 1) * len(x0))


TEXT, NULL = Condition(tokens=random((3, 6, 8), 4)), Condition(tokens=torch.zeros(1, 6, 8))
K = 4
MOVES = N - 1  # from the image, at the first queried level
GUIDED_DOWN = (N, 2 * N)
GUIDED_COSTS = {  # up and down: calls in sequence, samples evaluated per image
    # naive inversion, and at every level: the source prompt once, K fits, the last one's landing
    "null-text": (NullText(K, tolerance=0, growth=0), (MOVES * (3 + K), MOVES * (3 + K)), GUIDED_DOWN),
    "null-text, stopped at once": (NullText(K, tolerance=1e9), (MOVES * 4, MOVES * 4), GUIDED_DOWN),
    "negative prompt": (NegativePrompt(), (MOVES, MOVES), GUIDED_DOWN),
}


@pytest.mark.parametrize("name", GUIDED_COSTS)
def test_cost_of_inverting_guided_sampling(name, worded, x0):
    inverter, up, down = GUIDED_COSTS[name]
    with count_calls(worded) as there:
        trajectory = inverter.invert(Guided(worded, ClassifierFree(7.5, NULL)), x0, worded.schedule.levels(N), TEXT)
    with count_calls(worded) as back:
        sample(worded, cond=TEXT, **replay(trajectory))
    assert (there.calls, there.evaluations) == (up[0], up[1] * len(x0)) and trajectory.calls == up[0]
    assert (back.calls, back.evaluations) == (down[0], down[1] * len(x0))


def test_cost_of_coupled_ways_back_under_guidance(worded, x0):
    """EDICT asks twice a level; O-BELM's stored second state spares its first query."""
    levels, guidance = worded.schedule.levels(N), ClassifierFree(3.0, NULL)
    for inverter, calls in ((EDICT(), 2 * N), (OBELM(), N - 1)):
        trajectory = inverter.invert(Guided(worded, guidance), x0, levels, TEXT)
        with count_calls(worded) as back:
            sample(worded, cond=TEXT, guidance=guidance, **replay(trajectory))
        assert (back.calls, back.evaluations) == (calls, 2 * calls * len(x0)), inverter.name


def test_a_direct_edit_takes_three_lanes(worded, x0):
    back = replay(Direct().invert(worded, x0, worded.schedule.levels(N), TEXT))
    both = Condition(tokens=torch.cat([TEXT.tokens, random((3, 6, 8), 5)]))
    with count_calls(worded) as counter:
        sample(Beside(worded, ClassifierFree(7.5, NULL)), cond=both, **back | {"x": back["x"].repeat(2, 1, 1, 1)})
    assert (counter.calls, counter.evaluations) == (N, 3 * N * len(x0))


def test_operations_are_measured_once_per_shape_and_counted_every_time():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 7, bias=False)

        def forward(self, x, t, cond=None):
            return Prediction(self.layer(x), x)

    net = Linear()
    with count_calls(net) as counter:
        for _ in range(5):
            net(torch.zeros(4, 10), 1.0)
        net(torch.zeros(1, 10), 1.0)
    assert counter.flops == 2 * 10 * 7 * (5 * 4 + 1)
    assert counter.calls == 6 and counter.evaluations == 21
    with count_calls(net, flops=False) as counter:
        net(torch.zeros(4, 10), 1.0)
    assert counter.flops == 0 and counter.calls == 1


def test_counting_ends_with_the_context_also_after_an_error(backbone, images):
    with pytest.raises(RuntimeError), count_calls(backbone) as counter:
        backbone(images[:, :2], 1.0)
    with torch.no_grad():
        backbone(images, 1.0)
        backbone.halves(images, 1.0)
    assert counter.calls == 1 and "forward" not in vars(backbone) and "halves" not in vars(backbone)


def test_contexts_nest(gaussian, x0):
    with count_calls(gaussian, flops=False) as outer:
        with count_calls(gaussian, flops=False) as inner:
            gaussian(x0, 1.0)
        gaussian(x0, 1.0)
    assert (outer.calls, inner.calls) == (2, 1) and "forward" not in vars(gaussian)


def test_a_forward_written_by_way_of_halves_counts_once():
    class Halved(nn.Module):
        def forward(self, x, t, cond=None):
            h, finish = self.halves(x, t, cond)
            return finish([h])[0]

        def halves(self, x, t, cond=None):
            return x, lambda hs: [Prediction(h, h) for h in hs]

    net = Halved()
    with count_calls(net) as counter:
        net(torch.zeros(2, 3), 1.0)
    assert (counter.calls, counter.encoder, counter.decoder) == (1, 2, 2)


def test_evaluations_of_a_real_network(backbone, images):
    levels = backbone.schedule.levels(5)
    with torch.no_grad(), count_calls(backbone) as counter:
        trajectory = DDIM().invert(backbone, images, levels)
        sample(backbone, **replay(trajectory))
    assert counter.calls == 4 + 5 and trajectory.calls == 4
    with torch.no_grad(), count_calls(backbone) as once:
        backbone(images, 1.0)
    assert counter.flops == 9 * once.flops > 0
