"""Inverters of two coupled states: exact by algebra for any network, and what breaks that."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from editkit.engine.edict import EDICT
from editkit.engine.guidance import ClassifierFree, Guided
from editkit.engine.invert import OBELM, replay
from editkit.engine.ode import DDIM
from editkit.engine.pair import halves, join
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddim, move
from editkit.errors import UsageError
from editkit.metrics.images import psnr
from editkit.types import Condition, Prediction
from tests.engine.stand_ins import Calls, Wavy, random

COUPLED = [EDICT(), OBELM()]
FLOOR = {"edict": 1e-9, "o-belm": 1e-11}
GRIDS = [{}, {"spacing": "leading", "offset": 1}, {"spacing": "linspace"}, {"spacing": "trailing"}]


def by_name(inverter):
    return inverter.name


def away(denoiser, inverter, x0, levels, cond=None, **changes):
    back = replay(inverter.invert(denoiser, x0, levels, cond)) | {"stop": levels.entry, "cond": cond} | changes
    return float((sample(denoiser, **back) - x0).abs().max())


class Jumpy:
    """A discontinuous "network"."""

    schedule, parameterization = Schedule.linear(), "eps"

    def __call__(self, x, t, cond=None):
        return self.schedule.convert(x, t, torch.floor(3 * x.double()).to(x.dtype) / 3 + 0.1 * x.sign(), "eps")


@pytest.mark.parametrize("inverter", COUPLED, ids=by_name)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_way_back_ends_at_the_floor(inverter, grid, wavy, x0):
    for n in (2, 3, 12):
        levels = wavy.schedule.levels(n, **grid)
        assert away(wavy, inverter, x0, levels) < FLOOR[inverter.name]


@pytest.mark.filterwarnings("ignore:EDICT's two states")
@pytest.mark.parametrize("inverter", COUPLED, ids=by_name)
def test_the_way_back_ends_at_the_floor_for_any_network(inverter, doubled, images, x0):
    for denoiser, x in ((Jumpy(), x0), (Wavy(kind="v"), x0), (doubled, images.double())):
        levels = denoiser.schedule.levels(4)
        with torch.no_grad():
            assert away(denoiser, inverter, x, levels) < 1e-7, type(denoiser)
            assert away(denoiser, DDIM("target"), x, levels) > 1e-2


@pytest.mark.parametrize("inverter", COUPLED, ids=by_name)
def test_any_guidance_and_condition_that_are_the_same_both_ways(inverter, wavy, x0):
    cond, levels = Condition(vector=random((3, 48), 4)), wavy.schedule.levels(20)
    guidance = ClassifierFree(3.0, Condition(vector=torch.zeros(1, 48)))
    trajectory = inverter.invert(Guided(wavy, guidance), x0, levels, cond)
    there = partial(sample, wavy, stop=levels.entry, **replay(trajectory))
    assert (there(cond=cond, guidance=guidance) - x0).abs().max() < 1e-9
    assert (there(cond=cond) - x0).abs().max() > 1e-2, "without the guidance"
    assert (there(cond=Condition(vector=random((3, 48), 5)), guidance=guidance) - x0).abs().max() > 1e-2, "another condition"


@pytest.mark.parametrize("inverter", COUPLED, ids=by_name)
def test_states_are_float64_and_the_result_is_of_the_images_own_dtype(inverter, wavy, x0):
    levels = wavy.schedule.levels(10)
    trajectory = inverter.invert(wavy, x0.float(), levels)
    assert trajectory.x.dtype == torch.float64 and trajectory.x.shape == (3, 6, 4, 4)
    back = sample(wavy, stop=levels.entry, **replay(trajectory))
    assert torch.equal(back, x0.float()) and back.dtype == torch.float32
    assert sample(wavy, **replay(trajectory)).shape == x0.shape


@pytest.mark.parametrize("inverter", COUPLED, ids=by_name)
def test_a_batch_inverts_like_its_images_alone(inverter, wavy, x0):
    levels = wavy.schedule.levels(10)
    together = inverter.invert(wavy, x0, levels).x
    for n in range(len(x0)):
        torch.testing.assert_close(inverter.invert(wavy, x0[n : n + 1], levels).x[0], together[n], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverter", [EDICT(pivots=True), OBELM(pivots=True)], ids=by_name)
def test_pivots_are_the_states_on_the_way_back(inverter, wavy, x0):
    levels = wavy.schedule.levels(10)
    trajectory, seen = inverter.invert(wavy, x0, levels), []

    def check(i, j, x, pred):
        if j in trajectory.states:
            seen.append(j)
            torch.testing.assert_close(x, trajectory.states[j], rtol=1e-9, atol=1e-9)

    sample(wavy, on_step=check, **replay(trajectory))
    assert seen == list(range(trajectory.start - 1, levels.entry - 1, -1))


# ----------------------------------------------------------------------------------------------------------- EDICT


def alternating(wavy, pair, levels, start, mixing):
    """EDICT's sampling step by step, as the paper writes it, with the released code's taking of turns."""
    x, y = halves(pair)
    for i in range(start, levels.entry, -1):
        t = levels.times[i]
        if (start - i) % 2 == 0:
            x = move(levels, i, i - 1, x, wavy(y, t).eps)
            y = move(levels, i, i - 1, y, wavy(x, t).eps)
        else:
            y = move(levels, i, i - 1, y, wavy(x, t).eps)
            x = move(levels, i, i - 1, x, wavy(y, t).eps)
        x = mixing * x + (1 - mixing) * y
        y = mixing * y + (1 - mixing) * x
    return x, y


@pytest.mark.parametrize("mixing", [0.93, 1.0])
def test_edict_is_the_papers_sampling(mixing, wavy, x0):
    levels = wavy.schedule.levels(8)
    trajectory = EDICT(mixing).invert(wavy, x0, levels)
    start = join(random((3, 3, 4, 4), 1), random((3, 3, 4, 4), 2))
    back = replay(trajectory) | {"x": start, "output": lambda pair: pair, "stop": levels.entry}
    expected = join(*alternating(wavy, start, levels, trajectory.start, mixing))
    torch.testing.assert_close(sample(wavy, **back), expected, rtol=1e-9, atol=1e-9)


def test_edict_without_taking_turns_on_the_way_back_does_not_come_back(wavy, x0):
    """Easy wrong version: the inversion mirrors the turns of sampling, the way back always moves the same state first."""
    levels = wavy.schedule.levels(8)
    back = replay(EDICT().invert(wavy, x0, levels))
    in_turn = back["query"].func
    back["query"] = lambda ask, levels, i, j, x: in_turn(ask, levels, i, j, x, start=i)
    assert (sample(wavy, stop=levels.entry, **back) - x0).abs().max() > 1e-3


def test_edict_needs_its_second_state(wavy, x0):
    """Easy wrong version: start both states from x_N."""
    levels = wavy.schedule.levels(20)
    back = replay(EDICT().invert(wavy, x0, levels))
    x, _ = halves(back["x"])
    assert (sample(wavy, stop=levels.entry, **back | {"x": join(x, x)}) - x0).abs().max() > 1e-3


def test_rounding_is_amplified_so_edict_keeps_float64(wavy, x0):
    levels = wavy.schedule.levels(50)
    back = replay(EDICT().invert(wavy, x0, levels)) | {"stop": levels.entry, "output": lambda pair: halves(pair)[0]}
    exact, rounded = (
        float((sample(wavy, **back | {"x": back["x"].to(dtype)}) - x0).abs().max()) for dtype in (torch.float64, torch.float32)
    )
    assert exact < 1e-10 and rounded > 1e-7


def test_both_states_of_edict_are_nearly_the_same_picture(gaussian, x0):
    levels = gaussian.schedule.levels(50)
    trajectory = EDICT().invert(gaussian, x0, levels)
    assert max(trajectory.report["gap"]) < 0.01
    cond = Condition(vector=0.3 * random((3, 48), 4))
    one, other = halves(sample(gaussian, cond=cond, **replay(trajectory) | {"output": lambda pair: pair}))
    assert psnr(one, other).min() > 40 and psnr(one, x0).max() < 40


def test_edict_warns_where_its_states_come_apart(gaussian, x0):
    with pytest.warns(UserWarning, match="came apart over 299 levels"):
        EDICT().invert(gaussian, x0, gaussian.schedule.levels(300))


@pytest.mark.parametrize("mixing", [0.5, 0.0, 1.1])
def test_a_wrong_mixing_weight(mixing):
    with pytest.raises(UsageError, match="mixing weight"):
        EDICT(mixing)


# ---------------------------------------------------------------------------------------------------------- O-BELM


def test_o_belm_is_the_papers_sampling(wavy, x0):
    """x_{i-1} of the paper's equation, with h_i the rise of s / a from level i-1 to i."""
    levels = wavy.schedule.levels(8, spacing="linspace")
    trajectory = OBELM().invert(wavy, x0, levels)
    a = [levels.signal(i) for i in range(len(levels))]
    bar = [levels.noise(i) / levels.signal(i) for i in range(len(levels))]
    x, above = random((3, 3, 4, 4), 1), random((3, 3, 4, 4), 2)
    back = replay(trajectory) | {"x": join(x, above)}
    for i in range(trajectory.start, 0, -1):
        h, h_up = bar[i] - bar[i - 1], bar[i + 1] - bar[i]
        eps = wavy(x, levels.times[i]).eps
        below = (h / h_up) ** 2 * a[i - 1] / a[i + 1] * above + (1 - (h / h_up) ** 2) * a[i - 1] / a[i] * x
        x, above = below - h * (h + h_up) / h_up * a[i - 1] * eps, x
    torch.testing.assert_close(sample(wavy, **back), x, rtol=1e-9, atol=1e-9)


def test_one_level_of_o_belm_is_ddim(wavy, x0):
    levels = wavy.schedule.levels_at([300])
    trajectory = OBELM().invert(wavy, x0, levels)
    x, above = halves(trajectory.x)
    assert trajectory.start == 0 and torch.equal(x, x0)
    torch.testing.assert_close(above, DDIM("target").invert(wavy, x0, levels).x, rtol=1e-12, atol=1e-12)


def test_o_belm_keeps_both_states(wavy, x0):
    """Easy wrong version: rebuild x_{N-1} from x_N by a DDIM step."""
    levels = wavy.schedule.levels(30)
    back = replay(OBELM().invert(wavy, x0, levels))
    _, noisy = halves(back["x"])
    rebuilt = ddim(levels, 30, 29, noisy, wavy(noisy, levels.times[30]), (), None)
    assert (sample(wavy, stop=levels.entry, **back | {"x": join(rebuilt, noisy)}) - x0).abs().max() > 1e-3


def test_o_belm_is_of_higher_order_than_ddim(gaussian, x0):
    def error(n):
        levels = gaussian.schedule.levels(n)
        exact = gaussian.flow(x0, levels.alpha_bar[1], levels.alpha_bar[-1])
        naive = DDIM("target").invert(gaussian, x0, levels).x
        return tuple(float((x - exact).abs().max()) for x in (halves(OBELM().invert(gaussian, x0, levels).x)[1], naive))

    (coarse, naive_coarse), (fine, naive_fine) = error(50), error(200)
    assert coarse / fine > 2 * naive_coarse / naive_fine and fine < 0.3 * naive_fine


def test_o_belm_says_which_levels_it_cannot_take(wavy, x0):
    ends = Wavy(Schedule.scaled_linear().zero_terminal_snr(), kind="v").requires_grad_(False)
    with pytest.raises(ValueError, match="alpha_bar 0"):
        OBELM().invert(ends, x0, ends.schedule.levels(5, spacing="trailing"))


# ------------------------------------------------------------------------------------------------------------ calls


def test_calls(wavy, x0):
    levels = wavy.schedule.levels(8, spacing="leading", offset=1)
    for inverter, up, down in ((EDICT(), 16, 16), (OBELM(), 8, 7)):
        counted = Calls(wavy)
        trajectory = inverter.invert(counted, x0, levels)
        assert trajectory.calls == len(counted.times) == up and min(counted.times) >= 0
        counted = Calls(wavy)
        sample(counted, **replay(trajectory))
        assert len(counted.times) == down


def test_a_query_decides_what_the_network_is_asked(wavy, x0):
    """The loop itself: the prediction is the query's, the result what `output` reads."""
    levels = wavy.schedule.levels(5)
    plain = sample(wavy, x0, levels)
    twice = sample(wavy, x0, levels, query=lambda ask, levels, i, j, x: (ask(x), ask(x))[1], output=lambda x: 2 * x)
    assert torch.equal(twice, 2 * plain)
    still = sample(wavy, x0, levels, query=lambda ask, levels, i, j, x: Prediction(x0, torch.zeros_like(x)))
    assert torch.equal(still, x0)
