"""DiffusionCLIP's editing: its invariants, and easy wrong versions that break them."""

from __future__ import annotations

import pytest
import torch

from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.invert import DDIM
from editkit.engine.mixture import Mixture
from editkit.engine.sample import sample
from editkit.errors import UsageError
from editkit.training.mix import Checkpoint, Mix, mixed
from tests.methods.asyrp_parts import Images
from tests.methods.diffusionclip_parts import T0, editor_of, reconstruction, stirred


@pytest.fixture(scope="module")
def images():
    return Images(3)


# The degree of change.


def test_at_strength_0_the_edit_is_the_plain_reconstruction_bit_for_bit(backbone, tuned, images):
    edit = editor_of(backbone, tuned).edit(images.requests(strength=0.0)).images
    assert torch.equal(edit, reconstruction(backbone, images.images))


def test_states_rounded_to_pixels_between_the_stages_are_noticed(backbone, tuned, images):
    """An easy wrong version saves the noisy states as 8-bit images."""
    editor = editor_of(backbone, tuned)
    state = editor.prepare(images.requests())
    state.x = ((state.x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    edit = editor.edit(images.requests(strength=0.0), state).images
    assert not torch.allclose(edit, reconstruction(backbone, images.images), atol=1e-3)


def test_at_strength_1_the_original_network_is_not_asked(backbone, tuned, images):
    editor = editor_of(backbone, tuned)
    with count_calls(backbone, flops=False) as up, count_calls(tuned, flops=False) as none:
        state = editor.prepare(images.requests())
    assert (up.calls, up.evaluations, none.calls) == (7, 7 * 3, 0)
    with count_calls(backbone, flops=False) as original, count_calls(tuned, flops=False) as own:
        result = editor.edit(images.requests(), state)
    assert (original.calls, own.calls, own.evaluations) == (0, 8, 8 * 3)
    assert torch.equal(result.images, sample(tuned, state.x, backbone.schedule.levels(8, start=T0)))
    assert result.scores["network_calls"] == [15.0] * 3


def test_inverting_with_the_fine_tuned_network_is_another_edit(backbone, tuned, images):
    """An easy wrong version."""
    editor = editor_of(backbone, tuned)
    right = editor.edit(images.requests()).images
    levels = editor.levels(8)
    with torch.no_grad():
        wrong = sample(tuned, DDIM(query="source").invert(tuned, images.images, levels).x, levels)
    assert not torch.allclose(right, wrong, atol=1e-3)


def test_each_network_is_called_once_a_level_for_the_images_that_need_it(backbone, tuned, images):
    editor = editor_of(backbone, tuned)
    requests = [request.with_(strength=s) for request, s in zip(images.requests(), (0.0, 0.5, 1.0), strict=True)]
    state = editor.prepare(requests)
    with count_calls(backbone, flops=False) as original, count_calls(tuned, flops=False) as own:
        result = editor.edit(requests, state)
    assert (original.calls, original.evaluations, own.calls, own.evaluations) == (8, 16, 8, 16)
    assert result.scores["network_calls"] == [7 + 8.0, 7 + 16.0, 7 + 8.0]
    for row, request in enumerate(requests):
        alone = editor.edit([request]).images[0]
        assert torch.allclose(result.images[row], alone, atol=1e-4)


@torch.no_grad()
def test_eps_and_x0_are_the_weighted_means(backbone, tuned):
    x = torch.randn(2, 3, 8, 8)
    one = [Checkpoint("one", tuned, T0)]
    got = mixed(backbone, one, Mix.read(None, 1), torch.tensor([0.3, -1.0]))(x, 400.0)
    plain, edited = backbone(x, 400.0), tuned(x, 400.0)
    for name in ("eps", "x0"):
        a, b = getattr(plain, name), getattr(edited, name)
        expected = torch.stack([0.3 * b[0] + 0.7 * a[0], -b[1] + 2 * a[1]])
        assert torch.allclose(getattr(got, name), expected, atol=1e-5), name
    a, s = backbone.schedule.coefficients(400.0, x)
    assert torch.allclose(a * got.x0 + s * got.eps, x, atol=1e-4)


def test_the_strength_of_a_file_multiplies_that_of_the_request(backbone, tuned, images):
    editor = editor_of(backbone, tuned)
    half = editor.edit(images.requests(strength=0.5)).images
    editor.checkpoints = [Checkpoint("half", tuned, T0, strength=0.5)]
    assert torch.allclose(editor.edit(images.requests()).images, half, atol=1e-5)


# Several checkpoints.


def test_weights_by_time_are_those_of_the_first_threshold_reached():
    mix = Mix.read({0: [0.3, 0.7], "300": [1, 0]}, 2)
    assert [mix.at(t).tolist() for t in (500, 300, 299, 0)] == [[1, 0], [1, 0], [0.3, 0.7], [0.3, 0.7]]


def test_only_the_ratios_of_the_weights_matter(backbone, tuned, images):
    other = stirred(backbone, seed=2)
    edits = [editor_of(backbone, tuned, other, mix={0: row}).edit(images.requests()).images for row in ([1, 2], [2, 4])]
    assert torch.equal(*edits)


def test_one_network_with_any_weight_is_that_network(backbone, tuned, images):
    plain = editor_of(backbone, tuned).edit(images.requests()).images
    assert torch.equal(editor_of(backbone, tuned, mix={0: [1]}).edit(images.requests()).images, plain)
    assert torch.equal(editor_of(backbone, tuned, stirred(backbone, 2), mix={0: [0.4, 0]}).edit(images.requests()).images, plain)


def test_weights_that_count_the_original_network_in_are_another_edit(backbone, tuned, images):
    """An easy wrong version: the released README's own pseudo code lets the first weight belong to the original network."""
    other = stirred(backbone, seed=2)
    right = editor_of(backbone, tuned, other, mix={0: [1, 0]}).edit(images.requests()).images
    editor = editor_of(backbone, tuned, other, mix={0: [1, 0]})
    wrong = Mixture(backbone, [tuned, other], lambda t: torch.cat([editor.mix.at(t).float(), torch.zeros(1)]).expand(3, -1))
    with torch.no_grad():
        moved = sample(wrong, editor.prepare(images.requests()).x, editor.levels(8))
    assert torch.equal(right, editor_of(backbone, tuned).edit(images.requests()).images)
    assert not torch.allclose(right, moved, atol=1e-3)


def test_networks_take_turns(backbone, tuned, images):
    other = stirred(backbone, seed=2)
    editor = editor_of(backbone, tuned, other, mix={300: [1, 0], 0: [0, 1]})
    with count_calls(tuned, flops=False) as first, count_calls(other, flops=False) as second:
        editor.edit(images.requests())
    early = sum(t >= 300 for t in editor.levels(8).times[1:])
    assert (first.calls, second.calls) == (early, 8 - early)


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ({300: [1, 0]}, "times down to 0"),
        ({0: [1, 2, 3]}, "3 weights at 0 but 2"),
        ({0: [1, -1]}, "negative"),
        ({0: [0, 0]}, "above 0"),
    ],
)
def test_a_mix_that_does_not_fit_says_so(mix, said):
    with pytest.raises(UsageError, match=said):
        Mix.read(mix, 2)


# Grid, inversion, cache.


def test_the_grid_holds_both_ends_and_lands_on_a_clean_image(backbone):
    levels = editor_of(backbone, backbone).levels(40)
    assert levels.times[1] == 0 and levels.times[-1] == T0 and levels.entry == 1
    assert (levels.alpha_bar[0], len(levels) - 1) == (1.0, 40)
    assert levels.times[1:] == tuple(float(T0 * k // 39) for k in range(40))


def test_trailing_times_are_noticed(backbone):
    """An easy wrong version: evenly spaced times that leave out 0."""
    wrong = backbone.schedule.levels(6, start=T0, spacing="trailing")
    assert wrong.times[1] != 0 and wrong.entry == 0


class Gaussian:
    """The exact denoiser of images that are normal with deviation 0.5."""

    parameterization = "eps"

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, t, cond=None):
        a, s = self.schedule.coefficients(t, x)
        return self.schedule.convert(x, t, s * x / (0.25 * a**2 + s**2), "eps")


def test_reconstruction_gets_better_with_more_levels(backbone):
    x = 0.5 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for n in (5, 10, 40, 200):
        levels = backbone.schedule.levels(n, start=T0)
        denoiser = Gaussian(backbone.schedule)
        again = sample(denoiser, DDIM(query="source").invert(denoiser, x, levels).x, levels)
        errors.append(float((again - x).abs().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2


def test_inversions_are_cached_by_content(backbone, tuned, images, tmp_path):
    cache = InversionCache(tmp_path)
    first = editor_of(backbone, tuned, cache=cache).prepare(images.requests())
    with count_calls(backbone, flops=False) as counter:
        again = editor_of(backbone, stirred(backbone, 2), cache=cache).prepare(images.requests())
        assert counter.evaluations == 0
        editor_of(backbone, tuned, cache=cache, n_inv=7).prepare(images.requests())
        assert counter.evaluations == 3 * 6
        other = editor_of(backbone, tuned, cache=cache)
        other.start = 400
        other.prepare(images.requests())
        assert counter.evaluations == 3 * (6 + 7)
        nudged = [request.with_(image=request.image + 1e-3) for request in images.requests()]
        editor_of(backbone, tuned, cache=cache).prepare(nudged)
        assert counter.evaluations == 3 * (6 + 7 + 7)
    assert torch.equal(first.x, again.x)
    with count_calls(tuned, flops=False) as counter:
        editor_of(tuned, backbone, cache=cache).prepare(images.requests())
    assert counter.evaluations == 3 * 7


def test_noise_comes_with_eta_alone_and_belongs_to_the_image(backbone, tuned, images):
    quiet, loud = editor_of(backbone, tuned), editor_of(backbone, tuned, eta=1.0)
    assert torch.equal(quiet.edit(images.requests()).images, quiet.edit(images.requests(seed=1)).images)
    first = loud.edit(images.requests()).images
    assert not torch.allclose(first, loud.edit(images.requests(seed=1)).images, atol=1e-2)
    assert torch.allclose(first[1:2], loud.edit(images.requests()[1:2]).images, atol=1e-4)


def test_requests_may_ask_for_their_own_number_of_steps(backbone, tuned, images):
    editor = editor_of(backbone, tuned, measure=True)
    requests = images.requests()
    mixed = editor.edit([requests[0], requests[1].with_(steps=4), requests[2]])
    assert mixed.scores["network_calls"] == [15.0, 7.0, 15.0]
    assert len(mixed.scores["reconstruction_psnr"]) == 3
    assert torch.allclose(mixed.images[1], editor.edit([requests[1].with_(steps=4)]).images[0], atol=1e-4)
