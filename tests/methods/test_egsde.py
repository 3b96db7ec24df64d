"""EGSDE: its two energies, the walk that they steer, its classifier, and the easy mistakes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from editkit.engine.rng import batch_noise, level_noise
from editkit.engine.sample import sample
from editkit.engine.schedule import Schedule
from editkit.engine.steps import ddpm
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.egsde import EGSDE, energies
from editkit.methods.weakly_supervised.egsde.energies import TwoEnergies, likeness
from editkit.networks.low_pass import low_pass, squared_distance, squared_distance_slope
from editkit.training.artefact import Artefact
from editkit.types import EditRequest, Prediction
from tests.backbones import tiny_latent
from tests.engine.stand_ins import Calls
from tests.methods.asyrp_parts import tiny_backbone
from tests.training.toys import start

SIDE = 8


def method(**changes) -> EGSDE:
    torch.manual_seed(4)
    settings = {"steps": 10, "factor": 4, "realism": 300.0, "faithfulness": 2.0, "domains": ("cat", "dog")}
    made = EGSDE(backbone=tiny_backbone(), optimizer=partial(torch.optim.AdamW, lr=3e-3), **(settings | changes))
    made.prepare_training()
    return made


def pictures(count=2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def requests(count=2, **changes) -> list[EditRequest]:
    return [EditRequest(f"{k}.png", **{"image": image} | changes) for k, image in enumerate(pictures(count))]


def edited(made: EGSDE, asked=None) -> Tensor:
    return made.editor([]).edit(asked or requests()).images


def guidance(made: EGSDE, levels, source, noise, **changes) -> TwoEnergies:
    settings = {"realism": 1.0, "faithfulness": 1.0, "factor": 4} | changes
    return TwoEnergies(source, lambda i: noise, levels, made.classifier.features, **settings)


class Watched:
    """A counted backbone that notes whether it is asked with gradients."""

    def __init__(self, counted, asked):
        self.counted, self.asked, self.device = counted, asked, torch.device("cpu")
        self.schedule, self.parameterization = counted.schedule, counted.parameterization

    def __call__(self, x, t, cond=None):
        self.asked.append(x.requires_grad)
        return self.counted(x, t, cond)


# ------------------------------------------------------------------------------------------------------- the energies


def test_the_low_pass_is_linear_keeps_constants_and_lets_no_high_frequency_through():
    x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    assert torch.allclose(low_pass(2 * x + y, 4), 2 * low_pass(x, 4) + low_pass(y, 4), atol=1e-5)
    assert torch.allclose(low_pass(torch.full((1, 3, 16, 16), 0.7), 4), torch.tensor(0.7), atol=1e-6)
    stripes = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(4).expand(1, 3, 16, 16)
    assert low_pass(stripes, 4).abs().max() < 1e-6
    rough = F.interpolate(stripes, scale_factor=0.25, mode="bilinear", align_corners=False)
    assert rough.mean() == -1, "the easy mistake, a resize without smoothing, makes a shade of the stripes"
    with pytest.raises(ValueError, match="sizes that 5 divides"):
        low_pass(x, 5)


def test_borders_are_mirrored_with_the_outermost_pixel_repeated():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    line = low_pass(ramp, 2)[0, 0, 0]
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    coarse = [float((weights * torch.tensor(near)).sum()) for near in ([0, 0, 1, 2], [1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 7])]
    assert line[0] == pytest.approx(coarse[0]) and line[1] == pytest.approx(0.75 * coarse[0] + 0.25 * coarse[1])


def test_the_slope_in_closed_form_is_the_gradient():
    x, y = (torch.randn(2, 3, 16, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slope = torch.autograd.grad(squared_distance(x, y, 4).sum(), x)[0]
    torch.testing.assert_close(squared_distance_slope(x, y, 4), slope)


def test_the_distance_is_a_sum_over_the_image_and_its_slope_a_pixels_own():
    small = torch.full((1, 3, 16, 16), 0.5)
    large = torch.full((1, 3, 32, 32), 0.5)
    assert squared_distance(large, 0 * large, 4) == pytest.approx(4 * float(squared_distance(small, 0 * small, 4)))
    slopes = [squared_distance_slope(x, 0 * x, 4)[0, 0, 7, 7] for x in (small, large)]
    assert slopes[0] == pytest.approx(float(slopes[1])) == pytest.approx(1.0), "a mean would make it vanish on large images"


def test_likeness_is_a_cosine_at_each_place():
    one = torch.zeros(1, 2, 1, 2)
    one[0, 0] = torch.tensor([1.0, 10.0])
    other = torch.zeros(1, 2, 1, 2)
    other[0, :, 0, 0], other[0, 1, 0, 1] = torch.tensor([5.0, 0.0]), 3.0
    assert likeness(one, other) == pytest.approx(0.5), "one place alike, one at right angles"
    assert F.cosine_similarity(one.flatten(1), other.flatten(1)) < 0.2, "the easy mistake, one cosine over everything"
    assert likeness(one, one * torch.tensor([3.0, 0.1])) == pytest.approx(1.0)


def test_a_step_has_the_formula_of_the_paper():
    made, levels = method(), Schedule.linear().levels(50, start=499, spacing="linspace")
    y, source, noise = torch.randn(2, 3, SIDE, SIDE), pictures(), torch.randn(2, 3, SIDE, SIDE)
    i = 30
    pred = Prediction(torch.randn_like(y), torch.randn_like(y), features={"variance": torch.ones_like(y)})
    steered = guidance(made, levels, source, noise, realism=7.0, faithfulness=3.0).combine(y, levels.times[i], [pred], None)
    there = levels.signal(i) * source + levels.noise(i) * noise
    leaf = y.clone().requires_grad_()
    features = made.classifier.features
    energy = 7 * likeness(features(leaf, levels.times[i]), features(there, levels.times[i])) + 3 * squared_distance(
        leaf, there, 4
    )
    alpha = levels.alpha_bar[i] / levels.alpha_bar[i - 1]
    shift = -(1 - alpha) / alpha**0.5 * torch.autograd.grad(energy.sum(), leaf)[0]
    assert torch.allclose(steered.mean_shift, shift, atol=1e-5) and shift.abs().max() > 0.01
    plain = replace(pred, features={})
    moved = ddpm(levels, i, i - 1, y, steered, [], noise) - ddpm(levels, i, i - 1, y, plain, [], noise)
    assert torch.allclose(moved, shift, atol=1e-5), "and a learned variance is not used"


def test_where_the_walk_begins_both_energies_are_at_rest(monkeypatch):
    """The state is the noised source itself there; another noise for the source is the easy mistake."""
    made, seen = method(), []
    own = TwoEnergies.shift
    monkeypatch.setattr(TwoEnergies, "shift", lambda self, y, i: seen.append(own(self, y, i).abs().max()) or own(self, y, i))
    edited(made)
    assert seen[0] < 1e-4 < 1e-2 < max(seen)
    levels = made.editor([]).levels(10, 0.5)
    y = levels.signal(10) * pictures() + levels.noise(10) * torch.randn(2, 3, SIDE, SIDE)
    assert own(guidance(made, levels, pictures(), torch.randn(2, 3, SIDE, SIDE)), y, 10).abs().max() > 1e-2


# ----------------------------------------------------------------------------------------------------------- the walk


def test_without_energies_it_is_ancestral_sampling_from_the_noised_source():
    made = method(realism=0.0, faithfulness=0.0)
    editor, asked = made.editor([]), requests()
    levels = editor.levels(10, 0.5)
    keys = {"keys": [one.key for one in asked], "seed": [0, 0], "sample": [0, 0]}
    start = batch_noise((3, SIDE, SIDE), purpose="egsde/start/0", **keys)
    noise = level_noise((3, SIDE, SIDE), purpose="egsde/step/0", **keys)
    with torch.no_grad():
        y = levels.signal(10) * pictures() + levels.noise(10) * start
        plain = sample(made.backbone, y, levels, step=ddpm, noise=noise).clamp(-1, 1)
    assert torch.equal(edited(made), plain), "the energies draw no random numbers"
    assert not torch.allclose(edited(method()), plain, atol=1e-3)


def test_it_begins_at_the_last_time_that_it_walks():
    levels = method().editor([]).levels(500, 0.5)
    assert levels.times[1:] == tuple(map(float, range(500))) and levels.alpha_bar[0] == 1
    assert method().editor([]).levels(10, 0.5).times[-1] == 499


@pytest.mark.parametrize("name", ["realism", "faithfulness"])
def test_an_energy_goes_where_its_weight_says(name):
    """A wrong sign is the easy mistake."""
    steps, asked = 40, requests(4)
    source = pictures(4)

    def left(weight):
        made = method(steps=steps, **{"realism": 0.0, "faithfulness": 0.0, name: weight})
        found = edited(made, asked)
        with torch.no_grad():
            if name == "faithfulness":
                return float(squared_distance(found, source, 4).mean())
            return float(likeness(made.classifier.features(found, 0.0), made.classifier.features(source, 0.0)).mean())

    strong = {"realism": 100.0, "faithfulness": 3.0}[name]
    assert left(-strong / 3) > left(0.0) > left(strong)


def test_a_result_does_not_depend_on_its_batch():
    made = method()
    together, alone = edited(made), torch.cat([edited(made, [one]) for one in requests()])
    assert torch.allclose(together, alone, atol=1e-4)
    other = edited(made, [requests()[0].with_(sample=1)])
    assert not torch.allclose(other, alone[:1], atol=1e-2), "another sample is a variant"


def test_repeats_begin_at_the_last_result_and_keep_to_the_source(monkeypatch):
    made, sources, starts = method(repeats=2), [], []
    own = energies.TwoEnergies.shift

    def spy(self, y, i):
        if i == len(self.levels) - 1:
            sources.append(self.source)
            starts.append(y)
        return own(self, y, i)

    monkeypatch.setattr(energies.TwoEnergies, "shift", spy)
    once = method().editor([]).edit(requests())
    result = made.editor([]).edit(requests())
    assert len(sources) == 3 and all(torch.equal(source, pictures()) for source in sources)
    noise = batch_noise((3, SIDE, SIDE), ["0.png", "1.png"], seed=0, purpose="egsde/start/1")
    levels = made.editor([]).levels(10, 0.5)
    begun = (starts[2] - levels.noise(10) * noise) / levels.signal(10)
    assert torch.allclose(begun.clamp(-1, 1), once.images, atol=1e-4) and result.scores["network_calls"] == [20.0, 20.0]


def test_calls_are_one_of_the_model_and_two_of_the_classifier_a_step():
    made, asked, calls = method(), [], []
    editor = made.editor([])
    counted, features = Calls(made.backbone), editor.features
    editor.features = lambda x, t: calls.append(x.requires_grad) or features(x, t)
    editor.backbone = Watched(counted, asked)
    editor.edit(requests())
    assert calls == [False, True] * 10, "the source's without a gradient, the state's with one"
    assert counted.batches == [2] * 10 and not any(asked), "no gradient passes the diffusion model"
    faithful = method(realism=0.0).editor([])
    faithful.features = None  # never asked
    assert faithful.edit(requests()).scores["network_calls"] == [10.0, 10.0]


def test_the_source_may_be_noised_anew_at_each_level():
    fresh = edited(method(shared_noise=False))
    assert fresh.isfinite().all() and not torch.allclose(fresh, edited(method()), atol=1e-3)


# ----------------------------------------------------------------------------------------------------- the classifier


def test_the_classifier_begins_as_the_backbones_encoder_and_is_told_the_time():
    made = method()
    x = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        h, _ = made.backbone.halves(x, 300.0)
        assert torch.allclose(made.classifier.features(x, 300.0), h, atol=1e-5)
        assert made.classifier.features(x, 300.0).shape[1:] == made.backbone.bottleneck_shape
        assert not torch.allclose(made.classifier(x, 300.0), made.classifier(x, 900.0), atol=1e-4)
        assert torch.allclose(made.classifier(x, torch.tensor([300.0, 900.0]))[:1], made.classifier(x[:1], 300.0), atol=1e-5)


def test_the_classifier_learns_domains_under_noise_and_nothing_else_changes():
    made = method()
    frozen = {name: p.clone() for name, p in made.backbone.named_parameters()}
    start(made, steps=150, batch_size=8)
    light, dark = (torch.full((4, 3, SIDE, SIDE), value) for value in (0.6, -0.6))
    batch = {"image": torch.cat([light, dark]), "domain": [0] * 4 + [1] * 4, "key": list("abcdefgh")}
    torch.manual_seed(0)
    first = made.loss(batch)["domain"]
    assert first.shape == (8,)
    for _ in range(150):
        made.stepper.run(batch)
    with torch.no_grad():
        right = []
        for t in (50, 990):
            x = made.backbone.schedule.add_noise(batch["image"].repeat(20, 1, 1, 1), t, torch.randn(160, 3, SIDE, SIDE))
            right.append(float((made.classifier(x, float(t)).argmax(1) == torch.tensor(batch["domain"] * 20)).float().mean()))
    assert right[0] > 0.97 and right[1] < right[0], "near pure noise nobody can tell"
    assert all(torch.equal(p, frozen[name]) for name, p in made.backbone.named_parameters())


def test_a_trained_classifier_comes_back_from_its_file(tmp_path):
    made = method()
    with torch.no_grad():
        made.classifier.conv_in.weight.normal_()
        for weight in made.classifier.parameters():
            weight.copy_(weight.half())  # which is how they are kept
    [path] = made.export(tmp_path)
    kept = Artefact.load(path)
    assert {tensor.dtype for tensor in kept.tensors.values()} == {torch.float16}
    assert kept.card["kind"] == "noisy-classifier" and kept.card["domains"] == ["cat", "dog"]
    again = method().editor([kept]).edit(requests()).images
    assert torch.equal(again, edited(made)) and not torch.allclose(again, edited(method()), atol=1e-3)
    with pytest.raises(UserError, match="do not fit this recipe"):
        method(domains=("cat", "fox", "dog")).editor([kept])
    with pytest.raises(UserError, match="not of egsde"):
        method().editor([Artefact("x", kept.tensors, card={"kind": "delta"})])
    with pytest.raises(UsageError, match="one trained file"):
        method().editor([kept, kept])


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"strength": 0.0}, "out of range"), ({"domains": ("cat",)}, "two domains"), ({"steps": 900}, "steps do not fit")],
)
def test_settings_that_cannot_be_are_named(changes, said):
    with pytest.raises(UsageError, match=said):
        method(**changes)


def test_a_model_of_latents_is_refused():
    with pytest.raises(UsageError, match="a model of pixels"):
        EGSDE(backbone=tiny_latent.backbone())
