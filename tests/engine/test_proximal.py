"""Proximal guidance: what the threshold takes, what it leaves, and the pull towards the pivots."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.guidance import ClassifierFree, Guided, predict
from editkit.engine.invert import NegativePrompt, replay
from editkit.engine.proximal import Proximal, pull
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError
from editkit.types import Condition, Prediction
from tests.engine.stand_ins import random

T = 400.0
C, U = Condition(tokens=random((3, 6, 8), 3)), Condition(tokens=torch.zeros(3, 6, 8, dtype=torch.float64))
CFG = ClassifierFree(7.5, U)


@pytest.mark.parametrize("prox", ["soft", "hard"])
def test_the_ends_of_the_quantile(prox, worded, x0):
    everything = predict(worded, x0, T, C, Proximal(CFG, 0.0, prox=prox))
    plain = predict(worded, x0, T, C, CFG)
    torch.testing.assert_close(everything.eps, plain.eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(everything.x0, plain.x0, rtol=1e-9, atol=1e-9)
    nothing = predict(worded, x0, T, C, Proximal(CFG, 1.0, prox=prox))
    torch.testing.assert_close(nothing.eps, worded(x0, T, U).eps, rtol=1e-12, atol=1e-12)
    assert nothing.features["edited"].sum() == 0


def thresholded(values, **settings):
    """Return prox of hand-made differences, the prediction being u + 2 prox."""
    delta = torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)
    preds = [Prediction(-delta, delta), Prediction(torch.zeros_like(delta), torch.zeros_like(delta))]
    pred = Proximal(ClassifierFree(2.0), **settings).combine(torch.zeros_like(delta), T, preds, Schedule.linear())
    return (pred.eps / 2).flatten().tolist(), pred.features["edited"].flatten().tolist()


def test_soft_and_hard_thresholds_by_hand():
    values = [-5.0, -1.5, -0.5, 0.2, 1.0, 3.0]
    assert thresholded(values, threshold=1.0) == ([-4.0, -0.5, 0.0, 0.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    assert thresholded(values, threshold=1.0, prox="hard")[0] == [-5.0, -1.5, 0.0, 0.0, 0.0, 3.0]
    assert thresholded([1.0, 2.0, 3.0, 4.0, 5.0], quantile=0.5)[0] == [0.0, 0.0, 0.0, 1.0, 2.0]


def test_no_difference_changes_its_sign_or_grows(worded, x0):
    """Easy wrong version: the released code's l1 shifts once more by the threshold, which turns small ones around."""
    delta = worded(x0, T, C).eps - worded(x0, T, U).eps
    near = (predict(worded, x0, T, C, Proximal(CFG)).eps - worded(x0, T, U).eps) / 7.5
    assert (near * delta > -1e-12).all() and (near.abs() <= delta.abs() + 1e-12).all()
    tau = delta.abs().flatten(1).quantile(0.7, dim=1).reshape(-1, 1, 1, 1)
    wrong = (delta - delta.clamp(-tau, tau)) - tau * delta.sign()
    assert (wrong * delta < -1e-6).any()
    share = (near.abs() < 1e-12).double().mean()
    assert abs(float(share) - 0.7) < 0.02


def test_the_threshold_is_each_samples_own_and_x0_moves_along(worded, x0):
    together = predict(worded, x0, T, C, Proximal(CFG))
    alone = predict(
        worded, x0[1:2], T, Condition(tokens=C.tokens[1:2]), Proximal(ClassifierFree(7.5, Condition(tokens=U.tokens[:1])))
    )
    torch.testing.assert_close(alone.eps[0], together.eps[1], rtol=1e-9, atol=1e-9)
    a, s = worded.schedule.coefficients(T, x0)
    torch.testing.assert_close(a * together.x0 + s * together.eps, x0, rtol=1e-9, atol=1e-9)


def test_the_pull_brings_what_is_not_edited_back_to_the_pivots(worded, x0):
    levels = worded.schedule.levels(6)
    trajectory = NegativePrompt(pivots=True).invert(Guided(worded, ClassifierFree(7.5, U)), x0, levels, C)
    back, target = replay(trajectory), Condition(tokens=random((3, 6, 8), 9))
    guidance = Proximal(back["guidance"], 0.7)
    visited, shares = {}, []

    def watched(on_step):
        def after(i, j, x, pred):
            new = on_step(i, j, x, pred)
            visited[j] = (x, x if new is None else new, pred.features["edited"])
            return new

        return after

    sample(worded, cond=target, **back | {"guidance": guidance, "on_step": watched(pull(trajectory, rate=1.0))})
    for j, (before, after, edited) in visited.items():
        if levels.times[j + 1] < 400 and j >= levels.entry:
            torch.testing.assert_close(after, torch.where(edited > 0, before, trajectory.states[j]), rtol=1e-9, atol=1e-9)
            shares.append(float(edited.mean()))
        else:
            assert torch.equal(before, after), "early steps are left alone"
    assert len(shares) == 2 and min(shares) > 0 and max(shares) < 1, "something is edited, and not everything"
    before, after, edited = _one_pull(worded, trajectory, guidance, target, 0.1)
    torch.testing.assert_close(after, before - 0.1 * (before - trajectory.states[1]) * (1 - edited), rtol=1e-9, atol=1e-9)


def _one_pull(worded, trajectory, guidance, cond, rate):
    x, levels = trajectory.states[2], trajectory.levels
    pred = predict(worded, x, levels.times[2], cond, guidance)
    return x, pull(trajectory, rate=rate)(2, 1, x, pred), pred.features["edited"]


def test_wrong_settings(worded, x0):
    for settings in ({"quantile": 1.5}, {"prox": "l1"}):
        with pytest.raises(UsageError, match="proximal"):
            Proximal(CFG, **settings)
    trajectory = NegativePrompt().invert(Guided(worded, CFG), x0, worded.schedule.levels(4), C)
    with pytest.raises(UsageError, match="pivots=True"):
        pull(trajectory)
