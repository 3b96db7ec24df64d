"""DiffStyler: the dual walk and its starts, the guidance of one half, the style model's training, and the easy mistakes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from editkit.backbones.features import PerceptualNet
from editkit.backbones.v_diffusion import VDiffusionBackbone, VDiffusionNet
from editkit.engine.count import count_calls
from editkit.engine.guidance import ClassifierFree, Energy, Guided
from editkit.engine.invert import PLMS, replay
from editkit.engine.sample import sample
from editkit.engine.steps import ddim
from editkit.errors import UsageError, UserError
from editkit.losses.style import roughness, spherical_distance, square_crop
from editkit.methods.weakly_supervised.diffstyler import DiffStyler
from editkit.methods.weakly_supervised.diffstyler.process import Critic, Dual, Weights, content_distance, start_named
from editkit.training.artefact import Artefact
from editkit.types import Condition, EditRequest, Prediction
from tests.backbones import tiny_latent
from tests.methods.asyrp_parts import TinyClip, tiny_backbone
from tests.training.toys import start

SIDE, TEXT = 8, "a pencil drawing of a face"
QUIET = {"clip_weight": 0.0, "content_weight": 0.0}
NET = {"channels": [8, 8], "blocks": 1, "attended": 1, "head_channels": 8, "mapped": 8}


class Texts(TinyClip):
    dim = 3


def v_diffusion(seed=0, conditional=True) -> VDiffusionBackbone:
    torch.manual_seed(seed)
    net = VDiffusionNet(sample_size=SIDE, **NET, embedding=3 if conditional else None)
    return VDiffusionBackbone(net, Texts())  # type: ignore[arg-type]


def features(seed=7) -> PerceptualNet:
    torch.manual_seed(seed)
    return PerceptualNet((4, 8, 8)).requires_grad_(False)


def method(backbone=None, style=None, **changes) -> DiffStyler:
    settings = {"steps": 6, "content_share": 0.5, "style_share": 0.5, "clip_weight": 5.0, "content_weight": 3.0}
    settings |= {"clip": TinyClip, "features": features, "optimizer": partial(torch.optim.AdamW, lr=3e-3)}
    return DiffStyler(backbone=backbone or tiny_backbone(), style=style or tiny_backbone(1), **(settings | changes))


def pictures(count=2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def requests(count=2, **changes) -> list[EditRequest]:
    given = {"prompt": TEXT} | changes
    return [EditRequest(f"{k}.png", image=image, **given) for k, image in enumerate(pictures(count))]


def edited(made: DiffStyler, asked=None) -> Tensor:
    editor, asked = made.editor([]), asked or requests()
    return editor.edit(asked, editor.prepare(asked)).images


def ones(value: float, count=2) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def v_of(model, pred: Prediction, t: float) -> Tensor:
    return model.schedule.output(pred, t, "v")


# ------------------------------------------------------------------------------------------------------- the dual walk


@torch.no_grad()
def test_the_two_models_are_mixed_in_v():
    """Mixing the states after a step, or eps alone, are the easy mistakes: with a sum other than 1 they go elsewhere."""
    one, two, x, t = tiny_backbone(0), tiny_backbone(1), torch.randn(2, 3, SIDE, SIDE), 600.0
    both = one(x, t), two(x, t)
    mixed = Dual(one, two, ones(0.8), ones(0.5))(x, t)
    v = 0.8 * v_of(one, both[0], t) + 0.5 * v_of(two, both[1], t)
    a, s = one.schedule.coefficients(t, x)
    torch.testing.assert_close(mixed.x0, a * x - s * v, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.eps, s * x + a * v, rtol=1e-4, atol=1e-5)
    levels = one.schedule.levels(6)
    landed = ddim(levels, 4, 3, x, mixed, (), None)
    states = 0.8 * ddim(levels, 4, 3, x, both[0], (), None) + 0.5 * ddim(levels, 4, 3, x, both[1], (), None)
    assert not torch.allclose(landed, states, atol=1e-2), "mixing x_t"
    assert not torch.allclose(mixed.eps, 0.8 * both[0].eps + 0.5 * both[1].eps, atol=1e-2), "mixing eps"
    torch.testing.assert_close(Dual(one, two, ones(1.0), ones(0.0))(x, t).x0, both[0].x0, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_models_of_different_parametrisation_are_both_heard_in_v():
    """A network of eps beside one of v; taking both outputs as v is the easy mistake."""
    one, two, x, t = tiny_backbone(0), tiny_backbone(1), torch.randn(2, 3, SIDE, SIDE), 400.0
    two.parameterization = "eps"
    a, s = one.schedule.coefficients(t, x)
    output = two.unet(x, t).sample
    v = 0.5 * v_of(one, one(x, t), t) + 0.5 * (a * output - s * (x - s * output) / a)
    mixed = Dual(one, two, ones(0.5), ones(0.5))(x, t)
    torch.testing.assert_close(v_of(one, mixed, t), v, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(v_of(one, mixed, t), 0.5 * v_of(one, one(x, t), t) + 0.5 * output, atol=1e-2)


def critic(weights: Weights, **changes) -> Critic:
    return Critic(TinyClip(), features(), weights, **changes)


def guided(style, weights: Weights, asked) -> Guided:
    energy = critic(weights).energy(asked, torch.stack([one.image for one in asked]))
    return Guided(style, Energy(energy, 1.0))


def test_the_gradient_passes_through_the_style_model_and_weighs_s_over_a():
    style, x, t, asked = tiny_backbone(1), torch.randn(2, 3, SIDE, SIDE), 700.0, requests()
    energy = critic(Weights(5.0, 3.0, 0.5, 0.2)).energy(asked, pictures())
    a, s = style.schedule.coefficients(t, x)
    leaf = x.clone().requires_grad_()
    pred = style(leaf, t)
    slope = torch.autograd.grad(energy(pred.x0, t).sum(), leaf)[0]
    with torch.no_grad():
        found = guided(style, Weights(5.0, 3.0, 0.5, 0.2), asked)(x, t)
        plain = style(x, t)
    shift = v_of(style, found, t) - v_of(style, plain, t)
    torch.testing.assert_close(shift, slope * s / a, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.x0 - plain.x0, -(s**2) / a * slope, rtol=1e-3, atol=1e-5)
    assert shift.abs().max() > 1e-2
    at_x0 = plain.x0.clone().requires_grad_()
    detached = torch.autograd.grad(energy(at_x0, t).sum(), at_x0)[0] / a
    assert (detached - slope).abs().max() > 0.1 * slope.abs().max(), "cut off from the network it would be another gradient"
    assert not torch.allclose(shift, slope, rtol=0.1), "dropping s / a"


@torch.no_grad()
def test_the_content_model_is_not_guided():
    """Guiding it too, or the mixture, is the easy mistake."""
    made = method()
    editor, asked = made.editor([]), requests()
    state = editor.prepare(asked)
    dual = Dual(made.backbone, guided(made.style, Weights(5.0, 3.0), asked), ones(0.5), ones(0.5))
    images = sample(dual, **replay(state)).clamp(-1, 1)
    assert torch.equal(editor.edit(asked, state).images, images)
    both = Dual(guided(made.backbone, Weights(5.0, 3.0), asked), dual.style, ones(0.5), ones(0.5))
    assert not torch.allclose(sample(both, **replay(state)).clamp(-1, 1), images, atol=1e-3)
    alone = editor.edit([one.with_(strength=0.0) for one in asked], state).images
    other = editor.edit([one.with_(strength=0.0, prompt="neon") for one in asked], state).images
    assert torch.equal(alone, other), "without the style model no text is heard"


def test_without_losses_the_style_model_is_asked_as_it_is_and_nothing_is_differentiated():
    made = method(**QUIET)
    editor = made.editor([])
    asked: list[bool] = []

    def forward(x, t, cond=None):
        asked.append(x.requires_grad)
        return type(made.style).forward(made.style, x, t, cond)

    made.style.forward = forward
    editor.critic = replace(editor.critic, features=None, clip=None)
    images = editor.edit(requests(), editor.prepare(requests())).images
    assert len(asked) == 6 and not any(asked)
    with torch.no_grad():
        state = PLMS().invert(made.backbone, pictures(), made.backbone.levels(6))
        plain = sample(Dual(made.backbone, made.style, ones(0.5), ones(0.5)), **replay(state)).clamp(-1, 1)
    assert torch.equal(images, plain)


@torch.no_grad()
def test_the_content_model_alone_brings_the_picture_back_the_better_the_more_levels():
    def lost(steps, **changes):
        made = method(steps=steps, content_share=1.0, style_share=0.0, **changes)
        return float((edited(made) - pictures()).abs().mean())

    errors = [lost(steps) for steps in (8, 20, 60)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.03
    assert errors[1] < lost(20, solver="ddim")
    noised = method(steps=20, content_share=1.0, style_share=0.0, start="sdedit", depth=1.0)
    assert float((edited(noised) - pictures()).abs().mean()) > 10 * errors[1], "random noise in place of the inversion"


def test_the_inversion_draws_nothing_and_knows_no_text():
    made = method()
    editor = made.editor([])
    states = [editor.prepare(asked).x for asked in (requests(), requests(seed=4, prompt="another"))]
    assert torch.equal(*states)
    told = method(v_diffusion(), v_diffusion(1, False)).editor([])
    assert torch.equal(told.prepare(requests()).x, told.prepare(requests(prompt="another")).x)
    cond = Condition(vector=told.content.clip.text([TEXT] * 2))
    with torch.no_grad():
        wrong = PLMS().invert(told.content, pictures(), told.content.levels(6), cond)
    assert not torch.allclose(wrong.x, told.prepare(requests()).x, atol=1e-3), "inverting with the prompt is another start"


def test_the_prompt_reaches_a_content_model_that_reads_it_at_the_weight_of_the_scale():
    content, x, t = v_diffusion(), torch.randn(2, 3, SIDE, SIDE), 500.0
    told, untold = (content.condition(EditRequest("a", prompt=text)) for text in (TEXT, ""))
    with torch.no_grad():
        c, u = (v_of(content, content(x, t, cond), t) for cond in (told, untold))
        three = v_of(content, Guided(content, ClassifierFree(3.0, untold))(x, t, told), t)
    torch.testing.assert_close(three, -2 * u + 3 * c, rtol=1e-3, atol=1e-4)
    settings = {"content_share": 1.0, "style_share": 0.0}
    images = {scale: edited(method(content, v_diffusion(1, False), scale=scale, **settings)) for scale in (0.0, 1.0, 3.0)}
    with torch.no_grad():
        state = PLMS().invert(content, pictures(), content.levels(6), untold)
        expected = {0.0: sample(content, cond=untold, **replay(state)), 1.0: sample(content, cond=told, **replay(state))}
    for scale, image in expected.items():
        torch.testing.assert_close(images[scale], image.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(images[3.0], images[1.0], atol=1e-3)


def test_the_network_calls_are_counted():
    def calls(made, strength=None):
        editor, asked = made.editor([]), requests(strength=strength)
        with count_calls(made.backbone, flops=False) as content, count_calls(made.style, flops=False) as style:
            scores = editor.edit(asked, editor.prepare(asked)).scores["network_calls"]
        assert scores == [(content.evaluations + style.evaluations) / 2] * 2
        return content.evaluations / 2, style.evaluations / 2

    assert calls(method()) == (5 + 6, 6), "the house's levels place a picture at the first: n - 1 up, n down"
    assert calls(method(), strength=0.0) == (5 + 6, 0), "no share, no call"
    told = partial(method, v_diffusion(), v_diffusion(1, False))
    assert calls(told()) == (6 + 12, 6), "with a text two in one call on the way down"
    assert calls(told(scale=1.0)) == (6 + 6, 6)
    assert calls(method(start="free", depth=0.5)) == (3 + 3, 3)
    assert calls(method(start="sdedit", depth=0.5)) == (3, 3)


def test_strength_moves_share_from_one_model_to_the_other():
    editor = method(content_share=0.7, style_share=0.2).editor([])
    content, style = editor._shares([requests(1, strength=s)[0] for s in (0.0, None, 1.0, 3.0)])
    torch.testing.assert_close(style, torch.tensor([0.0, 0.2, 0.2, 0.6], dtype=torch.float64))
    torch.testing.assert_close(content + style, torch.full((4,), 0.9, dtype=torch.float64))


def test_a_result_does_not_depend_on_its_batch():
    for made in (method(crops=2), method(start="free"), method(v_diffusion(), v_diffusion(1, False))):
        together, alone = edited(made), torch.cat([edited(made, [one]) for one in requests()])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    seeds = [edited(method(smallest=0.5), requests(seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2]), "the seed chooses crops"


# ------------------------------------------------------------------------------------------------------------- starts


@torch.no_grad()
def test_starts_that_draw_noise_go_on_from_the_level_that_they_say():
    made = method(steps=10, start="free", depth=0.6)
    editor, asked = made.editor([]), requests()
    levels = made.backbone.levels(10)
    noise = editor._noise(asked)(10)
    state = editor.prepare(asked)
    x = levels.signal(10) * pictures() + levels.noise(10) * noise
    assert state.start == 6 and state.calls == 4
    torch.testing.assert_close(state.x, sample(made.backbone, x, levels, stop=6))
    half = start_named("sdedit", "plms", 0.5).invert(made.backbone, pictures(), levels, noise=editor._noise(asked))
    torch.testing.assert_close(half.x, levels.signal(5) * pictures() + levels.noise(5) * editor._noise(asked)(5))


@torch.no_grad()
def test_a_shallow_inversion_walks_the_cleaner_levels_and_keeps_more():
    made = method(steps=20, depth=0.5)
    state = made.editor([]).prepare(requests())
    assert state.start == 10 and state.levels.times == made.backbone.levels(20).times[:11]
    kept = [float((edited(method(steps=20, depth=depth)) - pictures()).abs().mean()) for depth in (0.2, 1.0)]
    assert kept[0] < kept[1]


# ------------------------------------------------------------------------------------------------------------- losses


def test_the_distance_of_embeddings_is_half_the_squared_angle():
    angles = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)
    a = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(3, 2)
    b = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    distance = spherical_distance(a, b)
    torch.testing.assert_close(distance, angles**2 / 2, rtol=1e-6, atol=1e-9)
    assert torch.autograd.grad(distance.sum(), b)[0].isfinite().all(), "of equal ones too"


def test_roughness_is_that_of_the_neighbours_right_and_below():
    ramp = torch.arange(4.0).expand(2, 3, 4, 4)
    torch.testing.assert_close(roughness(ramp), torch.full((2,), 0.75)), "three of four columns differ from the next by 1"
    assert roughness(torch.ones(1, 3, 4, 4)) == 0


def test_a_crop_is_a_square_of_at_least_the_size_that_all_are_reduced_to():
    image = torch.arange(16.0).expand(3, 16, 16)
    left, widths = [], []
    for seed in range(60):
        crop = square_crop(image, 8, torch.Generator().manual_seed(seed))
        assert crop.shape == (3, 8, 8)
        widths.append(float(crop[0, 0, -1] - crop[0, 0, 0]))
        left.append(float(crop.min()))
    assert 7 <= min(widths) < 9 < 12 < max(widths) < 15 and min(left) < 1 and max(left) > 6
    assert torch.equal(square_crop(image, 16, torch.Generator()), image)


def test_a_picture_is_no_distance_from_itself():
    """In two ranges, as in the released code, it is."""
    net = features()
    assert content_distance(net(pictures()), net(pictures())).tolist() == [0, 0]
    assert content_distance(net(pictures()), net(pictures() / 2 + 0.5)).min() > 0
    energy = critic(Weights(clip=0.0, content=3.0, lpips=1.0)).energy(requests(), pictures())
    assert energy(pictures(), 10.0).tolist() == [0, 0]


def test_each_loss_counts_by_its_weight_and_none_is_computed_in_vain():
    x0 = torch.randn(2, 3, SIDE, SIDE)
    parts = {
        name: critic(Weights(**({"clip": 0.0, "content": 0.0} | {name: 1.0}))) for name in ("clip", "content", "smooth", "lpips")
    }
    found = {name: one.energy(requests(), pictures())(x0, 100.0) for name, one in parts.items()}
    total = critic(Weights(2.0, 3.0, 4.0, 5.0)).energy(requests(), pictures())(x0, 100.0)
    expected = 2 * found["clip"] + 3 * found["content"] + 4 * found["smooth"] + 5 * found["lpips"]
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["lpips"], features().distance(x0, pictures()), rtol=1e-4, atol=1e-6)
    smooth = Critic(TinyClip(), None, Weights(0.0, 0.0, 1.0))  # type: ignore[arg-type]
    smooth.energy(requests(), pictures())(x0, 100.0)
    assert smooth.clip.seen == 0


def test_the_losses_lead_where_they_say():
    """Down, not up: the sign of the gradient is the easy mistake."""
    made = method(style_share=1.0, content_share=0.0, clip_weight=0.0, content_weight=20.0, steps=12)
    net = features()

    def left(weight):
        made = method(style_share=1.0, content_share=0.0, clip_weight=0.0, content_weight=weight, steps=12)
        return float(content_distance(net(edited(made)), net(pictures())).mean())

    assert made.weights.any() and left(20.0) < left(0.0) < left(-20.0)


# ------------------------------------------------------------------------------------------------------------ training


def test_the_style_model_begins_as_the_content_model_and_learns_pictures_alone():
    made = DiffStyler(backbone=tiny_backbone(), clip=TinyClip, features=features, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    frozen = {name: p.clone() for name, p in made.backbone.named_parameters()}
    assert all(torch.equal(p, frozen[name]) for name, p in made.style.named_parameters()) and made.needs_trained
    start(made, steps=50, batch_size=8)
    batch = {"image": torch.full((8, 3, SIDE, SIDE), 0.6), "key": list("abcdefgh")}

    def error():
        torch.manual_seed(5)
        with torch.no_grad():
            return float(torch.cat([made.loss(batch)["denoise"] for _ in range(4)]).mean())

    before = error()
    assert made.loss(batch)["denoise"].shape == (8,)
    for _ in range(50):
        made.stepper.run(batch)
    assert error() < 0.7 * before
    assert all(torch.equal(p, frozen[name]) for name, p in made.backbone.named_parameters())
    assert made.sample_grid().shape == (16, 3, SIDE, SIDE)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_v_diffusion_style_model_learns_too(conditional):
    content = v_diffusion(conditional=conditional)
    made = DiffStyler(backbone=content, clip=TinyClip, features=features, optimizer=partial(torch.optim.AdamW, lr=1e-3))
    start(made, steps=2, batch_size=2)
    loss = made.loss(made.dummy_batch())["denoise"].mean()
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in made.style.unet.parameters())


def test_a_trained_style_model_comes_back_from_its_file(tmp_path):
    untrained = partial(DiffStyler, backbone=tiny_backbone(), clip=TinyClip, features=features, steps=6)
    made = untrained()
    with torch.no_grad():
        made.style.unet.conv_out.weight.normal_(std=0.1)
        for weight in made.style.parameters():
            weight.copy_(weight.half())  # which is how they are kept
    [path] = made.export(tmp_path)
    kept = Artefact.load(path)
    assert kept.card["kind"] == "style-model" and set(kept.tensors) == {f"style.{name}" for name in made.style.state_dict()}
    editor = untrained().editor([kept])
    again = editor.edit(requests()).images
    assert torch.equal(again, edited(made)) and not torch.allclose(again, edited(untrained()), atol=1e-3)
    with pytest.raises(UserError, match="not of diffstyler"):
        untrained().editor([Artefact("x", kept.tensors, card={"kind": "delta"})])
    with pytest.raises(UsageError, match="one trained file"):
        untrained().editor([kept, kept])
    assert not method().needs_trained, "a published style model needs no training"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"start": "od"}, "method.start=od is unknown. Did you mean"),
        ({"solver": "euler"}, "method.solver=euler is unknown"),
        ({"depth": 0.0}, "method.depth=0.0 is out of range"),
        ({"style": v_diffusion(conditional=False)}, "different noise schedules"),
        ({"style": tiny_backbone(sample_size=16)}, "different sizes"),
        ({"backbone": tiny_latent.backbone()}, "models of pixels"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, said):
    with pytest.raises(UsageError, match=said):
        method(**changes)
