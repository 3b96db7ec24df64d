"""Null-text and negative-prompt inversion: unconditional branches that make guided sampling reconstruct."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from editkit.engine.guidance import ClassifierFree, Clip, Guided
from editkit.engine.invert import DDIM, NegativePrompt, NullText, replay
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.errors import UsageError
from editkit.types import Condition
from tests.engine.stand_ins import Calls, Worded, random

SCALE = 7.5
SOURCE, NULL = Condition(tokens=0.3 * random((3, 6, 8), 3)), Condition(tokens=torch.zeros(1, 6, 8, dtype=torch.float64))
CFG = ClassifierFree(SCALE, NULL)


@pytest.fixture
def levels(worded):
    return worded.schedule.levels(5)


def away(worded, trajectory, x0, cond=SOURCE, **changes):
    back = sample(worded, cond=cond, stop=trajectory.levels.entry, **replay(trajectory) | changes)
    return (back - x0).square().flatten(1).mean(1)


def invert(worded, x0, levels, inverter=NullText(), guidance=CFG, cond=SOURCE):  # noqa: B008 - frozen settings
    return inverter.invert(Guided(worded, guidance), x0, levels, cond)


# ------------------------------------------------------------------------------------------------------- null-text


def by_the_book(worded, x0, levels, cond, *, iterations, warm=True):
    """Null-text optimisation of one image as the reference code goes about it; returns the embeddings from the noisy end."""
    path = DDIM("target", pivots=True).invert(worded, x0, levels, cond)
    x, u, found = path.x, NULL.tokens.clone(), []
    for k, i in enumerate(range(path.start, levels.entry, -1)):
        t = levels.times[i]

        def step(u, x=x, i=i, t=t):
            return ddim(
                levels,
                i,
                i - 1,
                x,
                CFG.combine(x, t, [worded(x, t, cond), worded(x, t, Condition(tokens=u))], worded.schedule),
                (),
                None,
            )

        u = (u if warm else NULL.tokens).detach().clone().requires_grad_()
        adam = torch.optim.Adam([u], lr=1e-2 * (1 - k / 100))
        for _ in range(iterations):
            loss = torch.nn.functional.mse_loss(step(u), path.states[i - 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < 1e-5 + k * 2e-5:
                break
        x = step(u).detach()
        found.append(u.detach())
    return found


def test_it_is_the_reference_codes_optimisation(worded, x0, levels):
    """Order of update and stop, warm start, Adam made anew at each level, falling rate, rising tolerance."""
    trajectory = invert(worded, x0, levels)
    for n in range(len(x0)):
        expected = by_the_book(worded, x0[n : n + 1], levels, Condition(tokens=SOURCE.tokens[n : n + 1]), iterations=10)
        for tokens, i in zip(expected, range(trajectory.start, levels.entry, -1), strict=True):
            torch.testing.assert_close(trajectory.conds[i].tokens[n : n + 1], tokens, rtol=1e-5, atol=1e-5)


def test_it_lowers_the_reconstruction_error_under_guidance_the_more_the_longer(worded, x0, levels):
    errors = [away(worded, invert(worded, x0, levels, NullText(k, tolerance=0, growth=0)), x0) for k in (0, 2, 10)]
    plain = away(worded, DDIM("target").invert(worded, x0, levels, SOURCE), x0, guidance=CFG)
    torch.testing.assert_close(errors[0], plain, rtol=1e-9, atol=1e-12)  # it starts at the given embedding
    assert (errors[1] < errors[0]).all() and (errors[2] < errors[1]).all() and (errors[2] < 0.5 * plain).all()


def test_the_error_to_every_pivot_is_reported(worded, x0, levels):
    plain, fitted = (invert(worded, x0, levels, NullText(k)).report["pivot_error"] for k in (0, 10))
    assert all(better < worse for better, worse in zip(fitted, plain, strict=True))


def test_a_cold_start_at_every_level_is_worse(worded, x0):
    """Easy wrong version: start from the empty prompt again at each level."""
    levels, one, cond = worded.schedule.levels(10), x0[:1], Condition(tokens=SOURCE.tokens[:1])
    trajectory = invert(worded, one, levels, NullText(3, tolerance=0, growth=0), cond=cond)
    cold = by_the_book(worded, one, levels, cond, iterations=3, warm=False)
    wrong = replace(trajectory, conds=dict(zip(trajectory.conds, map(Condition, cold), strict=True)))
    assert away(worded, trajectory, one, cond) < away(worded, wrong, one, cond)


def test_every_image_stops_by_itself(worded, x0, levels):
    inverter, counted = NullText(6, tolerance=2.0, growth=0.0), Calls(worded)
    tokens = SOURCE.tokens * torch.tensor([0.02, 1.0, 1.0]).reshape(-1, 1, 1)  # the first says nearly nothing
    together = invert(counted, x0, levels, inverter, cond=Condition(tokens=tokens))
    taken = []
    for n in range(len(x0)):
        alone = invert(worded, x0[n : n + 1], levels, inverter, cond=Condition(tokens=tokens[n : n + 1]))
        taken += alone.report["iterations"]
        for i in alone.conds:
            torch.testing.assert_close(alone.conds[i].tokens[0], together.conds[i].tokens[n], rtol=1e-5, atol=1e-5)
    assert taken == together.report["iterations"] and len(set(taken)) > 1
    assert together.calls == len(counted.batches) and min(counted.batches) < 3, "finished images leave the batch"


def test_velocity_models_invert_too(x0):
    worded = Worded(kind="v").requires_grad_(False)
    levels = worded.schedule.levels(4)
    plain, fitted = (away(worded, invert(worded, x0, levels, NullText(k)), x0) for k in (0, 10))
    assert (fitted < plain).all()


def test_gradients_are_its_own_affair(worded, x0, levels):
    worded.requires_grad_(True)
    with torch.no_grad():
        trajectory = invert(worded, x0, levels, NullText(1))
    assert not trajectory.conds[5].tokens.requires_grad and all(each.grad is None for each in worded.parameters())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        invert(worded, x0, levels, NullText(1))


def test_embeddings_are_fitted_in_full_precision(worded, x0, levels):
    half = ClassifierFree(SCALE, Condition(tokens=NULL.tokens.half()))
    assert invert(worded, x0, levels, NullText(1), half).conds[5].tokens.dtype == torch.float32


def test_where_guidance_is_off_there_is_nothing_to_fit(worded, x0, levels):
    trajectory = invert(worded, x0, levels, NullText(2), replace(CFG, scale=1.0))
    assert trajectory.report["iterations"] == [0, 0, 0] and trajectory.calls == 4 + 4
    plain = away(worded, DDIM("target").invert(worded, x0, levels, SOURCE), x0)
    torch.testing.assert_close(away(worded, trajectory, x0), plain, rtol=1e-9, atol=1e-12)
    partly = invert(worded, x0, levels, NullText(2), replace(CFG, interval=(400, 999)))
    assert partly.report["iterations"] == [6, 6, 6], "levels of the times 999, 749 and 499"


def test_an_edit_starts_from_the_same_noise_and_goes_elsewhere(worded, x0, levels):
    trajectory = invert(worded, x0, levels, NullText(2))
    target = Condition(tokens=random((3, 6, 8), 9))
    assert (away(worded, trajectory, x0, target) > 2 * away(worded, trajectory, x0)).all()


@pytest.mark.parametrize("inverter", [NullText(1), NegativePrompt()], ids=lambda inverter: inverter.name)
def test_what_they_need(inverter, worded, x0, levels):
    for denoiser in (worded, Guided(worded, Clip())):
        with pytest.raises(UsageError, match="pass Guided"):
            inverter.invert(denoiser, x0, levels, SOURCE)
    for cond, uncond in ((None, NULL), (SOURCE, None), (Condition(vector=x0), NULL)):
        with pytest.raises(UsageError, match="reads text"):
            inverter.invert(Guided(worded, ClassifierFree(SCALE, uncond)), x0, levels, cond)


# -------------------------------------------------------------------------------------------------- negative prompt


def test_negative_prompt_is_guidance_with_the_source_as_the_other_branch(worded, x0, levels):
    trajectory = invert(worded, x0, levels, NegativePrompt())
    assert torch.equal(trajectory.x, DDIM("target").invert(worded, x0, levels, SOURCE).x)
    for cond in (SOURCE, Condition(tokens=random((3, 6, 8), 9))):
        by_hand = sample(worded, trajectory.x, levels, cond, guidance=ClassifierFree(SCALE, SOURCE))
        assert torch.equal(sample(worded, cond=cond, **replay(trajectory)), by_hand)


def test_negative_prompt_reconstructs_like_plain_inversion_at_any_scale(worded, x0, levels):
    path = DDIM("target").invert(worded, x0, levels, SOURCE)
    plain = away(worded, path, x0)
    for scale in (3.0, 15.0):
        trajectory = invert(worded, x0, levels, NegativePrompt(), replace(CFG, scale=scale))
        torch.testing.assert_close(away(worded, trajectory, x0), plain, rtol=1e-6, atol=1e-9)
    assert (away(worded, path, x0, guidance=CFG) > 2 * plain).all(), "the empty prompt does not"


def test_interpolation_leads_to_the_given_branch(worded, x0, levels):
    trajectory = invert(worded, x0, levels, NegativePrompt(interpolation=1.0))
    torch.testing.assert_close(
        sample(worded, cond=SOURCE, **replay(trajectory)), sample(worded, trajectory.x, levels, SOURCE, guidance=CFG)
    )
    with pytest.raises(UsageError, match="interpolation"):
        NegativePrompt(1.5)
