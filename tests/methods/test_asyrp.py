"""Asyrp's generative process: its invariants, and easy wrong versions that break them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from editkit.engine.asymmetric import Asymmetric
from editkit.engine.count import count_calls
from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.asyrp.process import Phases, boosted, coefficients, gated, shift_of
from editkit.types import Prediction
from tests.methods.asyrp_parts import Images, attribute, editor_of, reconstruction


@pytest.fixture(scope="module")
def images():
    return Images(3)


@pytest.mark.parametrize("attributes", [{"strength": 0.0}, {"t_edit": 1000.0}], ids=["strength 0", "never"])
def test_without_a_shift_the_edit_is_the_plain_reconstruction_bit_for_bit(backbone, images, attributes):
    editor = editor_of(backbone, attribute(backbone, **attributes))
    assert torch.equal(editor.edit(images.requests()).images, reconstruction(backbone, images))


def test_a_shift_changes_the_image_and_its_negative_another_way(backbone, images):
    editor = editor_of(backbone, attribute(backbone))
    state = editor.prepare(images.requests())
    plus, minus = (editor.edit(images.requests(strength=s), state).images for s in (1.0, -1.0))
    plain = reconstruction(backbone, images)
    assert (plus - plain).abs().max() > 1e-3
    assert (minus - plain).abs().max() > 1e-3
    assert not torch.allclose(plus, minus, atol=1e-3)


@torch.no_grad()
def test_the_update_takes_x0_from_the_shifted_and_the_direction_from_the_plain_pass(backbone, images):
    levels = backbone.schedule.levels(6)
    i, x = 5, torch.randn(2, 3, 8, 8)
    one = attribute(backbone, t_edit=0.0)
    shift = shift_of(backbone, [one], torch.ones(2, 1))
    h, finish = backbone.halves(x, levels.times[i])
    plain, shifted = finish([h])[0], finish([h + shift(h, levels.times[i])])[0]
    a, s = levels.signal(i - 1), levels.noise(i - 1)
    got = sample(Asymmetric(backbone, shift), x, levels, step=boosted(0), start=i, stop=i - 1)
    assert torch.allclose(got, a * shifted.x0 + s * plain.eps, atol=1e-5)
    assert not torch.allclose(got, a * shifted.x0 + s * shifted.eps, atol=1e-4)


class Constant:
    """A backbone whose bottleneck is its eps, so that a shift of h is a shift of eps."""

    parameterization = "eps"

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, t, cond=None):
        return self.halves(x, t)[1]([torch.zeros_like(x)])[0]

    def halves(self, x, t, cond=None):
        return torch.zeros_like(x), lambda hs: [self.schedule.convert(x, t, h, "eps") for h in hs]


class Symmetric(Asymmetric):
    """An easy wrong version: the shifted pass serves both the estimate and the direction."""

    def __call__(self, x, t, cond=None):
        h, finish = self.denoiser.halves(x, t, cond)
        return finish([h + self.shift(h, t)])[0]


class SwappedRoles(Asymmetric):
    """An easy wrong version: the shift moves the direction and not the estimate."""

    def __call__(self, x, t, cond=None):
        right = Asymmetric.__call__(self, x, t, cond)
        plain = self.denoiser.halves(x, t)[1]([torch.zeros_like(x)])[0]
        shifted = self.denoiser.halves(x, t)[1]([self.shift(plain.eps, t)])[0]
        return Prediction(x0=plain.x0, eps=shifted.eps) if right is not None else plain


def effect(wrapper, backbone, high, low, d=1.0):
    """How far a constant d in eps moves x at the lower of two times."""
    levels = backbone.schedule.levels_at([low, high])
    x = torch.zeros(1, 3, 2, 2)
    moved = sample(wrapper(backbone, lambda h, t: torch.full_like(h, d)), x, levels, start=2, stop=1)
    return float((moved - sample(backbone, x, levels, start=2, stop=1)).mean())


@pytest.mark.parametrize(
    ("high", "low", "symmetric", "asymmetric"),
    [(500, 499, -0.0053, -0.9652), (537, 512, -0.1464, -1.1113), (768, 742, -0.2199, -1.2180)],
)
def test_only_the_asymmetric_step_carries_a_shift_on(backbone, high, low, symmetric, asymmetric):
    """Theorem 1 of the paper: in both places the shift nearly cancels. Its size tells the right version from wrong ones."""
    constant = Constant(backbone.schedule)
    assert effect(Asymmetric, constant, high, low) == pytest.approx(asymmetric, abs=2e-4)
    assert effect(Symmetric, constant, high, low) == pytest.approx(symmetric, abs=2e-4)
    assert effect(SwappedRoles, constant, high, low) > 0


@torch.no_grad()
def test_directions_are_those_of_the_edited_state(backbone, images):
    """An easy wrong version takes eps from the unedited trajectory."""
    levels = backbone.schedule.levels(6)
    one = attribute(backbone, t_edit=0.0)
    shift = shift_of(backbone, [one], torch.full((3, 1), 3.0))
    x = DDIM(query="source").invert(backbone, images.images, levels).x
    kept = {}
    sample(backbone, x, levels, on_step=lambda i, j, y, pred: kept.__setitem__(levels.times[i], pred.eps))
    right = Asymmetric(backbone, shift)

    class FromUnedited(Asymmetric):
        def __call__(self, x, t, cond=None):
            return replace(super().__call__(x, t, cond), eps=kept[t])

    good, wrong = sample(right, x, levels), sample(FromUnedited(backbone, shift), x, levels)
    assert not torch.allclose(good, wrong, atol=1e-3)
    assert torch.allclose(editor_of(backbone, replace(one, strength=3.0)).edit(images.requests()).images, good, atol=1e-4)


def test_the_shifted_bottleneck_is_the_middle_block_s_output(backbone, images):
    """An easy wrong version hooks what enters the middle block."""
    seen = []

    def constant(h, temb, t):
        seen.append(h)
        return h * 2

    one = replace(attribute(backbone, t_edit=950.0), delta=constant)
    got = editor_of(backbone, one).edit(images.requests()).images
    levels = backbone.schedule.levels(6)
    with torch.no_grad():
        x = DDIM(query="source").invert(backbone, images.images, levels).x
        outputs = {}
        for place in ("bottleneck", "down.1"):
            plain = backbone(x, 999.0)
            with backbone.taps(place, lambda out: out * 3):
                edited = backbone(x, 999.0)
            first = levels.signal(5) * edited.x0 + levels.noise(5) * plain.eps
            outputs[place] = sample(backbone, first, levels, start=5)
        with backbone.taps("bottleneck", lambda out: seen.append(out)):
            backbone(x, 999.0)
    assert torch.allclose(seen[0], seen[1], atol=1e-5)
    assert torch.allclose(got, outputs["bottleneck"], atol=1e-4)
    assert not torch.allclose(got, outputs["down.1"], atol=1e-3)


def test_the_shift_acts_only_in_its_interval(backbone, images):
    """An easy wrong version shifts at all times: it would take a second decoder pass at every level."""
    levels = backbone.schedule.levels(6)
    assert [levels.times[i] for i in Phases(500).edited(levels)] == [999, 799, 599]
    for t_edit, start, edited in ((400.0, None, 3), (400.0, 800, 3), (0.0, None, 6), (600.0, 500, 0)):
        editor = editor_of(backbone, attribute(backbone, t_edit=t_edit), t_start=start)
        state = editor.prepare(images.requests())
        with count_calls(backbone, flops=False) as counter:
            editor.edit(images.requests(), state)
        assert (counter.encoder, counter.decoder) == (3 * 6, 3 * (6 + edited))


def test_noise_comes_in_the_last_phase_only(backbone, images):
    levels = backbone.schedule.levels(6)
    assert levels.times[1:3] == (0.0, 199.0)
    quiet = editor_of(backbone, attribute(backbone))
    assert torch.equal(quiet.edit(images.requests()).images, quiet.edit(images.requests(seed=1)).images)
    loud = editor_of(backbone, attribute(backbone, t_boost=300.0))
    first = loud.edit(images.requests()).images
    assert torch.equal(first, loud.edit(images.requests()).images)
    assert not torch.allclose(first, loud.edit(images.requests(seed=1)).images, atol=1e-2)
    # only the step from 199 adds noise: the last one ends at a clean image
    late = editor_of(backbone, attribute(backbone, t_boost=100.0))
    assert torch.equal(late.edit(images.requests()).images, quiet.edit(images.requests()).images)


def test_an_image_does_not_depend_on_its_batch(backbone, images):
    editor = editor_of(backbone, attribute(backbone, t_boost=300.0))
    together = editor.edit(images.requests()).images
    alone = torch.cat([editor.edit([request]).images for request in images.requests()])
    assert torch.allclose(together, alone, atol=1 / 255)


# Scaling and several attributes.


def test_the_sum_of_the_shifts_does_not_depend_on_the_number_of_steps(backbone):
    """An easy wrong version forgets n_train / n_test: with 25 times the steps the shift is 25 times as large."""
    one = replace(attribute(backbone), n_train=40)
    totals, wrong = [], []
    for n in (40, 80, 1000):
        edited = one.phases.edited(backbone.schedule.levels(n))
        totals.append(float(coefficients([one], torch.ones(1, 1), n)) * len(edited))
        wrong.append(len(edited))
    assert max(totals) / min(totals) < 1.05
    assert max(wrong) / min(wrong) > 20


def test_the_shift_is_linear_in_the_strength(backbone):
    one = attribute(backbone)
    h = torch.randn(2, *backbone.bottleneck_shape)
    shifts = {c: shift_of(backbone, [one], torch.tensor([[c], [2 * c]]))(h, 800.0) for c in (1.0, -3.0)}
    assert torch.allclose(shifts[-3.0], -3 * shifts[1.0], atol=1e-5)
    assert torch.allclose(shifts[1.0][1], 2 * shift_of(backbone, [one], torch.ones(2, 1))(h, 800.0)[1], atol=1e-5)


def test_one_of_two_attributes_is_that_one_alone_up_to_the_root_of_two(backbone, images):
    a, b = attribute(backbone, 0), attribute(backbone, 1)
    both = editor_of(backbone, a, b)
    state = both.prepare(images.requests())
    mixed = both.sweep(images.requests(), torch.tensor([[math.sqrt(2), 0.0]]), state)[:, 0]
    alone = editor_of(backbone, a).sweep(images.requests(), torch.tensor([[1.0]]), state)[:, 0]
    assert torch.allclose(mixed, alone, atol=1e-4)


def test_shifts_add_up_and_read_the_unshifted_bottleneck(backbone):
    a, b = attribute(backbone, 0), attribute(backbone, 1)
    h = torch.randn(2, *backbone.bottleneck_shape)
    both = shift_of(backbone, [a, b], torch.ones(2, 2))(h, 800.0)
    apart = [shift_of(backbone, [one], torch.ones(2, 1))(h, 800.0) for one in (a, b)]
    assert torch.allclose(both, apart[0] + apart[1], atol=1e-5)


def test_gating(backbone):
    small, large = attribute(backbone, 0, t_edit=600.0, text_cosine=0.9), attribute(backbone, 1, t_edit=200.0, text_cosine=0.5)
    assert [one.phases.t_edit for one in gated([small, large], "own")] == [600, 200]
    assert [one.phases.t_edit for one in gated([small, large], "official")] == [600, 600]
    with pytest.raises(UsageError, match="official"):
        gated([small], "oficial")
    h = torch.randn(1, *backbone.bottleneck_shape)
    only_large = shift_of(backbone, [small, large], torch.ones(1, 2))(h, 400.0)
    assert torch.equal(only_large, shift_of(backbone, [large], torch.ones(1, 1))(h, 400.0))


def test_a_sweep_is_the_edits_one_by_one(backbone, images):
    editor = editor_of(backbone, attribute(backbone), t_start=700)
    state = editor.prepare(images.requests())
    with count_calls(backbone, flops=False) as counter:
        strip = editor.sweep(images.requests(), torch.tensor([[-1.0], [0.0], [1.0]]), state)
    assert counter.encoder == 3 * 3 * 6  # nothing is inverted again
    for k, strength in enumerate((-1.0, 0.0, 1.0)):
        one = editor.edit(images.requests(strength=strength), state).images
        assert torch.allclose(strip[:, k], one, atol=1e-4)
