"""Asyrp: the invariants of the method, and easy wrong versions that break them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from editkit.engine.asymmetric import Asymmetric
from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.engine.invert import DDIM
from editkit.engine.sample import sample
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.asyrp import AsyrpEditor
from editkit.methods.weakly_supervised.asyrp.process import Attribute, Phases, Tables, boosted, coefficients, gated, shift_of
from editkit.networks.delta import DdpmDelta
from editkit.training.artefact import Artefact
from editkit.types import EditRequest, Prediction
from tests.methods.asyrp_parts import Images, TinyClip, ready, tiny_backbone, tiny_method

CELEBA = {
    "predicted": [[400, 0.185], [421, 0.198], [450, 0.223], [459, 0.231], [489, 0.264], [514, 0.297], [538, 0.33], [550, 0.351]],
    "noisy": [[125, 1.087], [150, 1.164], [167, 1.2], [175, 1.216]],
}


def delta_of(backbone, seed=0):
    torch.manual_seed(seed)
    block = DdpmDelta(backbone.bottleneck_shape[0], backbone.time_width).requires_grad_(False)
    return lambda h, temb, t: block(h, temb)


def attribute(backbone, seed=0, t_edit=400.0, **changes):
    phases = Phases(t_edit, changes.pop("t_boost", 0.0), changes.pop("t_max", math.inf))
    return Attribute(f"attribute {seed}", delta_of(backbone, seed), phases, 6, **changes)


def editor_of(backbone, *attributes, **settings):
    return AsyrpEditor(backbone, attributes, **({"n_inv": 6, "n_test": 6, "measure": False} | settings))


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone()


@pytest.fixture(scope="module")
def images():
    return Images(3)


def reconstruction(backbone, images, n=6):
    levels = backbone.schedule.levels(n)
    with torch.no_grad():
        return sample(backbone, DDIM(query="source").invert(backbone, images.images, levels).x, levels)


# The process.


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
        h, finish = self.backbone.halves(x, t, cond)
        return finish([h + self.shift(h, t)])[0]


class SwappedRoles(Asymmetric):
    """An easy wrong version: the shift moves the direction and not the estimate."""

    def __call__(self, x, t, cond=None):
        right = Asymmetric.__call__(self, x, t, cond)
        plain = self.backbone.halves(x, t)[1]([torch.zeros_like(x)])[0]
        shifted = self.backbone.halves(x, t)[1]([self.shift(plain.eps, t)])[0]
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
    assert [levels.times[i] for i in Phases(400, 0, 800).edited(levels)] == [799, 599]
    for bounds, edited in (({"t_edit": 400.0}, 3), ({"t_edit": 400.0, "t_max": 800.0}, 2), ({"t_edit": 0.0}, 6)):
        editor = editor_of(backbone, attribute(backbone, **bounds))
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
    editor = editor_of(backbone, attribute(backbone, t_max=700.0))
    state = editor.prepare(images.requests())
    with count_calls(backbone, flops=False) as counter:
        strip = editor.sweep(images.requests(), torch.tensor([[-1.0], [0.0], [1.0]]), state)
    assert counter.encoder == 3 * (2 + 3 * 4)  # the two levels above 700 once, the other four for each strength
    for k, strength in enumerate((-1.0, 0.0, 1.0)):
        one = editor.edit(images.requests(strength=strength), state).images
        assert torch.allclose(strip[:, k], one, atol=1e-4)


# Calibration.


def test_published_tables_give_the_published_times():
    tables = Tables.read(CELEBA)
    assert [tables.t_edit(cosine) for cosine in (1.0, 0.9, 0.8, 0.7, 0.6)] == [538, 514, 489, 459, 421]
    assert tables.t_boost() == 167


def test_farther_texts_give_a_longer_edit():
    """An easy wrong version uses one t_edit for all texts."""
    tables = Tables.read(CELEBA)
    times = [tables.t_edit(cosine / 100) for cosine in range(60, 101)]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_threshold_out_of_reach_says_which_key_to_lower():
    with pytest.raises(UserError, match=r"method\.boost_threshold"):
        Tables.read(CELEBA).t_boost(5.0)


def test_calibration_measures_writes_and_is_read_back(tmp_path):
    method = tiny_method(run_dir=str(tmp_path), edit_threshold=0.0, boost_threshold=0.0)
    figures = method.tasks["calibrate"](Images())
    tables = Tables.read(figures["file"])
    assert [t for t, _ in tables.predicted] == [0, 199, 399, 599, 799, 999] == [t for t, _ in tables.noisy]
    assert tables.noisy[0][1] == 0 < tables.noisy[-1][1]
    assert figures["t_boost"] == 0
    again = tiny_method(tables=figures["file"], t_edit=None, t_boost=None, edit_threshold=0.0, boost_threshold=0.0)
    again.prepare_training()
    assert again.phases.t_boost == 0
    other = tiny_method(backbone=tiny_backbone(seed=9), tables=figures["file"], t_edit=None)
    with pytest.raises(UserError, match="another backbone"):
        other.prepare_training()


def test_distances_belong_to_their_own_time(tmp_path):
    """The released table keeps each estimate under the next time: off by one level."""
    backbone, data = tiny_backbone(), Images(2)
    method = tiny_method(backbone=backbone, run_dir=str(tmp_path))
    net = method.make_perceptual()
    method.make_perceptual = lambda: net
    tables = Tables.read(method.tasks["calibrate"](data)["file"])
    with torch.no_grad():
        first = net.distance(backbone(data.images, 0.0).x0, data.images).mean()
    assert tables.predicted[0][1] == pytest.approx(float(first), abs=1e-6)


# Training.


def test_one_step_per_level_and_only_the_block_moves():
    method, data = tiny_method(), Images()
    before, block = method.backbone.digest(), [p.clone() for p in method.delta.parameters()]
    ready(method)
    method.precompute(data)
    for rows in ([0, 1], [2, 3]):
        method.stepper.run(data.batch(rows))
    assert method.stepper.steps == 2 * len(method.edited) == 6
    assert method.backbone.digest() == before
    assert all(p.grad is None for p in method.backbone.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(block, method.delta.parameters(), strict=True))


def test_no_gradient_crosses_levels():
    method, data = ready(tiny_method()), Images()
    for update in method.updates(data.batch([0, 1])):
        graph_calls = [name for name in _nodes(update.total()) if "Convolution" in name]
        # the shifted decoder and the block's own two, once: not those of earlier levels
        limit = sum(isinstance(m, torch.nn.Conv2d) for m in method.backbone.unet.modules()) + 2
        assert 0 < len(graph_calls) <= limit


def _nodes(tensor):
    seen, stack = [], [tensor.grad_fn]
    known = set()
    while stack:
        node = stack.pop()
        if node is None or node in known:
            continue
        known.add(node)
        seen.append(type(node).__name__)
        stack += [parent for parent, _ in node.next_functions]
    return seen


@pytest.mark.parametrize("clip_source", ["x0", "p_src"])
def test_a_zero_initialised_block_starts_at_the_frozen_estimates(clip_source):
    method, data = ready(tiny_method(zero_init=True, clip_source=clip_source)), Images()
    first = next(iter(method.updates(data.batch([0, 1]))))
    assert torch.allclose(first.losses["l1"], torch.zeros(2), atol=1e-5)
    if clip_source == "p_src":
        assert torch.allclose(first.losses["clip"], torch.full((2,), 0.8 * math.log(2)), atol=1e-2)
    first.total().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.delta.parameters())
    assert any(p.grad.abs().max() > 0 for p in method.delta.parameters())


def test_training_lowers_the_clip_loss():
    method, data = ready(tiny_method(optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))), Images()
    method.precompute(data)
    history = []
    for _ in range(8):
        history.append([update.losses["clip"].detach().mean().item() for update in _stepped(method, data)])
    assert sum(history[-1]) < sum(history[0])


def _stepped(method, data):
    for update in method.updates(data.batch([0, 1])):
        method.stepper._apply(update, data.batch([0, 1]))
        yield update


def test_the_l1_term_is_scaled_by_the_texts_cosine():
    method, data = ready(tiny_method(l1_weight=3.0)), Images()
    edited, source = data.images[:2] + 0.1, data.images[:2]
    losses, _ = method.losses(edited, source, method.direction.features(source))
    assert 0 < method.text_cosine < 1
    assert torch.allclose(losses["l1"], torch.full((2,), 3.0 * method.text_cosine * 0.1), atol=1e-5)


def test_training_walks_the_same_way_as_editing():
    """The state that training reaches is the one that the editor's loop reaches with the same block."""
    method, data = ready(tiny_method()), Images(2)
    levels, x = method.levels, method.compute_sources(data.images).x
    block = method.delta.requires_grad_(False)
    one = Attribute("own", lambda h, temb, t: block(h, temb), method.phases, method.n_train)
    with torch.no_grad():
        pred = method.predict(x, levels.times[method.edited[0]])
        wrapped = Asymmetric(method.backbone, shift_of(method.backbone, [one], torch.ones(2, 1)))
        expected = wrapped(x, levels.times[method.edited[0]])
    assert torch.allclose(pred.x0, expected.x0, atol=1e-4)
    assert torch.allclose(pred.eps, expected.eps, atol=1e-5)


def test_frozen_trajectories_and_source_features_are_computed_once():
    clip, data = TinyClip(), Images(4)
    method = ready(tiny_method(clip=clip))
    with count_calls(method.backbone, flops=False) as counter:
        method.precompute(data)
    # per image: 5 calls of the inversion, 3 of the frozen way down from time 999 to t_edit
    assert counter.evaluations == 4 * (5 + 3)
    assert clip.seen == 4
    with count_calls(method.backbone, flops=False) as counter:
        for rows in ([0, 1], [2, 3], [1, 0], [3, 2]):
            method.stepper.run(data.batch(rows))
    assert (counter.encoder, counter.decoder) == (8 * 3, 8 * 3 * 2)
    assert clip.seen == 4 + 8 * 3  # the edited estimates alone


def test_images_that_are_seen_once_are_not_kept():
    method = ready(tiny_method(), steps=None, images=4)
    method.precompute(Images(4))
    assert not method.kept
    method.stepper.run(Images(4).batch([0, 1]))
    assert method.stepper.steps == 3


def test_kept_sources_are_those_of_the_batch():
    method, data = ready(tiny_method()), Images(4)
    fresh = method.sources(data.batch([2, 0]))
    method.precompute(data)
    kept = method.sources(data.batch([2, 0]))
    for name in ("x", "x0", "features"):
        assert torch.allclose(getattr(fresh, name), getattr(kept, name), atol=1e-4), name


def test_a_run_needs_times_or_tables_and_a_level_between_them():
    with pytest.raises(UserError, match=r"method\.tables"):
        tiny_method(t_edit=None).prepare_training()
    with pytest.raises(UserError, match="lower method.t_edit"):
        tiny_method(t_edit=410, t_max=590).prepare_training()
    with pytest.raises(UsageError, match="clip_source=p_scr"):
        tiny_method(clip_source="p_scr")


def test_a_sample_grid_shows_source_half_and_full():
    method, data = ready(tiny_method()), Images(4)
    method.precompute(data)
    grid = method.sample_grid()
    assert grid.shape == (4, 3, 3, 8, 8)
    assert torch.equal(grid[:, 0], data.images)


# Files and tasks.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = Images(4)
    method = ready(tiny_method(run_dir=str(folder)))
    method.stepper.run(data.batch([0, 1]))
    (path,) = method.export(folder / "export")
    return method, path, folder, data


def test_a_saved_file_edits_like_the_trained_block(exported):
    method, path, _, data = exported
    assert path.name == "a-smiling-face.safetensors"
    block = method.delta
    own = Attribute("own", lambda h, temb, t: block(h, temb), method.phases, 6, method.text_cosine)
    expected = editor_of(method.backbone, own).edit(data.requests()).images
    fresh = tiny_method(backbone=tiny_backbone())
    again = fresh.editor([Artefact.load(path)]).edit(data.requests()).images
    assert torch.equal(expected, again)


def test_the_card_says_what_the_file_needs(exported):
    _, path, _, _ = exported
    card = Artefact.load(path).card
    assert card["prompt"] == "a smiling face"
    assert (card["t_edit"], card["t_boost"], card["n_train"], card["bottleneck_shape"]) == (400, 0, 6, [16, 4, 4])
    json.dumps(card, allow_nan=False)


def test_the_strength_of_a_file_multiplies_that_of_the_request(exported):
    method, path, _, data = exported
    half = method.editor([Artefact.load(path, strength=0.5)]).edit(data.requests(strength=2.0)).images
    assert torch.allclose(half, method.editor([Artefact.load(path)]).edit(data.requests()).images, atol=1e-5)


def test_scores_count_calls_and_measure_the_reconstruction(exported):
    method, path, _, data = exported
    result = method.editor([Artefact.load(path)]).edit(data.requests())
    assert result.scores["network_calls"] == [11.0] * 4  # 5 up, 6 down
    assert result.scores["decoder_passes"] == [14.0] * 4  # 3 levels with two
    assert len(result.scores["reconstruction_psnr"]) == 4
    assert all(-20 < value <= 60 for value in result.scores["reconstruction_psnr"])


def test_requests_may_ask_for_their_own_number_of_steps(exported):
    method, path, _, data = exported
    editor = method.editor([Artefact.load(path)])
    requests = data.requests()
    mixed = editor.edit([requests[0], requests[1].with_(steps=4), requests[2]])
    assert mixed.scores["network_calls"] == [11.0, 7.0, 11.0]
    assert torch.allclose(mixed.images[1], editor.edit([requests[1].with_(steps=4)]).images[0], atol=1e-4)
    assert torch.allclose(mixed.images[2], editor.edit([requests[2]]).images[0], atol=1e-4)


def test_inversions_come_from_the_cache_and_serve_other_attributes(backbone, images, tmp_path):
    cache = InversionCache(tmp_path)
    first = editor_of(backbone, attribute(backbone, 0), cache=cache).prepare(images.requests())
    with count_calls(backbone, flops=False) as counter:
        other = editor_of(backbone, attribute(backbone, 1), cache=cache)
        again = other.prepare(images.requests())
        assert counter.evaluations == 0
    assert torch.equal(first.x, again.x)
    assert torch.equal(other.edit(images.requests(), first).images, other.edit(images.requests()).images)


def test_a_file_of_something_else_is_refused(exported):
    method, path, _, _ = exported
    with pytest.raises(UserError, match="not of asyrp"):
        method.editor([Artefact("odd", {}, card={"method": "other"})])
    wider = tiny_method(backbone=tiny_backbone(block_out_channels=(8, 32)))
    with pytest.raises(UserError, match="another backbone"):
        wider.editor([Artefact.load(path)])


def test_mean_and_global_shifts_are_files_that_edit(exported):
    """The released code ignores them: here they must move the image, much as the block itself does."""
    method, path, folder, data = exported
    figures = method.tasks["mean_delta"](data)
    files = [Artefact.load(name) for name in figures["files"].split(", ")]
    kinds = {artefact.card["kind"]: artefact for artefact in files}
    assert kinds["mean"].tensors["values"].shape == (3, 16, 4, 4)
    assert kinds["global"].tensors["values"].shape == (1, 16, 4, 4)
    plain = reconstruction(method.backbone, data)
    full = method.editor([Artefact.load(path)]).edit(data.requests()).images
    for artefact in files:
        edited = method.editor([artefact]).edit(data.requests()).images
        assert (edited - plain).abs().max() > 1e-4
        assert (edited - full).norm() < (plain - full).norm()
    for file in figures["files"].split(", "):
        (folder / "export" / file.rsplit("/", 1)[1]).unlink()


def test_strips_and_grids_are_written(exported, tmp_path):
    _, path, _, data = exported
    one = tiny_method(attributes=[str(path)], run_dir=str(tmp_path))
    figures = one.tasks["strip"](data)
    assert figures["strengths"] == [-1.0, 0.0, 1.0]
    assert (tmp_path / "strip.png").stat().st_size > 0
    with pytest.raises(UserError, match="two trained files"):
        one.tasks["grid"](data)
    two = tiny_method(attributes=[str(path), str(path)], run_dir=str(tmp_path))
    assert len(two.tasks["grid"](data)["files"].split(", ")) == 2


def test_tasks_without_files_say_what_to_give(tmp_path):
    with pytest.raises(UserError, match=r"method\.attributes"):
        tiny_method(run_dir=str(tmp_path)).tasks["strip"](Images())


def test_an_adm_style_backbone_gets_its_own_block(images):
    backbone = tiny_backbone(resnet_time_scale_shift="scale_shift", out_channels=6)
    method = ready(tiny_method(backbone=backbone))
    assert type(method.delta).__name__ == "AdmDelta"
    method.stepper.run(images.batch([0, 1]))
    assert method.card()["style"] == "adm"
    assert method.editor(method.artefacts()).edit(images.requests()).images.shape == (3, 3, 8, 8)


def test_needs_an_image(backbone):
    with pytest.raises(UsageError, match="asyrp needs --image"):
        editor_of(backbone, attribute(backbone)).check([EditRequest(key="a")])
