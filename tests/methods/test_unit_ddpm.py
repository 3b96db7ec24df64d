"""UNIT-DDPM: the steps of its networks, its walk of two pictures, what it leaves, and the easy mistakes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from editkit import cli
from editkit.backbones.pixel import PixelBackbone, UntrainedPixel
from editkit.engine.schedule import Schedule
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.unit_ddpm.networks import by_domain
from editkit.training.artefact import Artefact
from editkit.training.denoising import drawn_times
from editkit.training.editor import images_of
from editkit.types import Condition, Prediction
from tests.app.standin import pixels
from tests.backbones import tiny_latent
from tests.methods.asyrp_parts import tiny_backbone
from tests.methods.unit_ddpm_parts import batch, by_hand, edited, method, network_eps, pictures, requests, untouched
from tests.tiny import write_images, write_pixel
from tests.training.toys import start


def steps_of(made):
    """Return the two updates of a batch, each with its gradients taken."""
    torch.manual_seed(0)
    for update in made.updates(batch()):
        update.total().backward()
        yield update


def untrained_by(module: nn.Module) -> bool:
    return all(p.grad is None for p in module.parameters())


class Watched(nn.Module):
    """A noise network that notes what it is asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, []
        self.schedule, self.parameterization = network.schedule, network.parameterization

    @property
    def device(self):
        return self.network.device

    def forward(self, x, t, cond=None):
        self.asked.append((float(t), x, cond.concat))
        return self.network(x, t, cond)


def watched(made):
    editor = made.editor([])
    editor.backbone, editor.source = Watched(editor.backbone), Watched(editor.source)
    return editor


# ----------------------------------------------------------------------------------------------------------- training


def test_each_step_trains_its_own_networks():
    made = method()
    made.freeze_rest()
    updates = steps_of(made)
    assert next(updates).group == "noise"
    assert untrained_by(made.translators) and not untrained_by(made.noise), "the fakes are constants to the noise networks"
    made.zero_grad(set_to_none=True)
    before = copy.deepcopy(made.noise.state_dict())
    assert next(updates).group == "translators"
    assert untrained_by(made.noise) and not untrained_by(made.translators), "whose gradients would be left for the next batch"
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.noise.state_dict().items())


def test_the_translators_learn_through_both_pictures_of_both_noise_networks():
    made = method()
    made.freeze_rest()
    updates = made.updates(batch())
    next(updates)
    for name, loss in next(updates).losses.items():
        slopes = torch.autograd.grad(loss.mean(), list(made.translators.parameters()), retain_graph=True, allow_unused=True)
        assert all(slope is not None for slope in slopes), name


MISTAKES = ["a clean counterpart", "the same noise for both", "different times", "the other domain first"]


@pytest.mark.parametrize("mistake", [None, *MISTAKES])
def test_terms_are_those_of_the_paper(mistake):
    """Written out domain by domain, as the paper has it, on the same draws."""
    made, given = method(), batch()
    torch.manual_seed(0)
    found = [update.losses for update in made.updates(given)]
    torch.manual_seed(0)
    schedule, found = made.backbone.schedule, {name: loss for losses in found for name, loss in losses.items()}
    t = drawn_times(4, len(schedule), torch.device("cpu"))
    noise, other = torch.randn_like(given["image"]), torch.randn_like(given["image"])
    for k, own in enumerate(given["domain"]):
        x, e, f, time = given["image"][k : k + 1], noise[k : k + 1], other[k : k + 1], t[k : k + 1]
        there, back = made.translators[own], made.translators[1 - own]
        fake = there(x)
        x_t = schedule.add_noise(x, time, e)
        late = (time + 300) % 1000 if mistake == "different times" else time
        fake_t = schedule.add_noise(fake, late, e if mistake == "the same noise for both" else f)
        beside = fake if mistake == "a clean counterpart" else fake_t
        pair = (beside, x_t) if mistake == "the other domain first" else (x_t, beside)
        eps = network_eps(made.noise[own], *pair, time)
        if mistake == "the other domain first":
            eps = eps + schedule.coefficients(time, x)[1] * (x_t - beside)  # v is of x_t, whatever is first
        a, _ = schedule.coefficients(time, x)
        said = {"beside": (eps - e).square().mean(), "noise": ((eps - e) / a).square().mean()}
        if mistake is None:
            said["translated"] = (network_eps(made.noise[1 - own], fake_t, x_t, time) - f).square().mean()
            said["cycle"] = 10 * (back(fake) - x).abs().mean()
        for name, value in said.items():
            assert (abs(float(found[name][k].detach() - value.detach())) < 1e-3 * float(value.detach()) + 1e-5) == (
                mistake is None
            ), (name, k)


def test_with_the_true_noise_and_faithful_translators_nothing_is_left():
    made, given = untouched(), batch()
    given["image"] = torch.full_like(given["image"], 0.3)
    schedule = made.backbone.schedule

    class Oracle(nn.Module):
        def forward(self, x, t, cond):
            a, s = schedule.coefficients(t, x)
            return Prediction(torch.full_like(x, 0.3), (x - a * 0.3) / s)

    made.noise = nn.ModuleList([Oracle(), Oracle()])
    for update in made.updates(given):
        assert all(loss.shape == (4,) and loss.abs().max() < 1e-4 for loss in update.losses.values())


def test_a_norm_of_squares_may_be_asked_for():
    made = method()
    _, terms = list(made.updates(batch()))
    again = method(cycle_norm="l2", cycle=1.0)
    _, squares = list(again.updates(batch()))
    x, domain = batch()["image"], batch()["domain"]
    back = by_domain(again.translators, [1 - own for own in domain], by_domain(again.translators, domain, x))
    assert torch.allclose(squares.losses["cycle"], (back - x).square().mean((1, 2, 3)), atol=1e-6)
    assert torch.allclose(terms.losses["cycle"], 10 * (back - x).abs().mean((1, 2, 3)), atol=1e-5)


def test_rows_come_back_in_their_order_from_the_network_of_their_domain():
    calls = []
    networks = [lambda x, k=k: calls.append(len(x)) or x + 100 * k for k in (0, 1)]
    rows = torch.arange(5.0)[:, None]
    assert by_domain(networks, [1, 0, 1, 1, 0], rows).flatten().tolist() == [100, 1, 102, 103, 4] and calls == [2, 3]
    assert by_domain(networks, [1, 1], rows[:2]).flatten().tolist() == [100, 101] and calls == [2, 3, 2]


def test_training_lowers_the_error_and_does_without_a_domain_in_a_batch():
    made = untouched()
    start(made, steps=60, batch_size=4)
    first = made.noise[0].unet.conv_in.weight.clone()
    given = {**batch(), "domain": [0] * 4}
    for _ in range(2):
        made.stepper.run(given)
    assert not torch.equal(made.noise[0].unet.conv_in.weight, first)
    errors = []
    for _ in range(25):
        torch.manual_seed(0)
        made.stepper.run(batch())
        errors.append(made.stepper.meter.take()["loss/noise"])
    assert errors[-1] < 0.85 * errors[0]
    assert made.noise[0].unet.conv_in.weight[:, 3:].abs().max() > 1e-3, "and it reads the other picture"


def test_networks_may_begin_from_models_of_their_domains(tmp_path):
    homes = []
    for seed in (1, 2):
        homes.append(tmp_path / str(seed))
        tiny_backbone(seed).unet.save_pretrained(homes[-1] / "unet")
        DDPMScheduler(prediction_type="v_prediction").save_pretrained(homes[-1] / "scheduler")
    made = untouched(init_from=[str(home) for home in homes])
    made.prepare_training()
    x, noise = pictures(), torch.randn(2, 3, 8, 8)
    for seed, network in zip((1, 2), made.noise, strict=True):
        with torch.no_grad():
            own, beside = tiny_backbone(seed)(x, 300), network(x, 300, Condition(concat=noise))
        assert torch.allclose(own.eps, beside.eps, atol=1e-5), "deaf to the other picture, to begin with"
    other = untouched(backbone=tiny_backbone(block_out_channels=(8, 8)), init_from=[str(home) for home in homes])
    with pytest.raises(UsageError, match="backbone's layout"):
        other.prepare_training()


def test_training_may_go_on_from_what_an_earlier_one_left(tmp_path):
    """With the noise networks that the file holds; a conv_in that ignores the other picture, as of a new model, would differ."""
    [earlier] = method().artefacts()
    made = untouched(init_from=[str(earlier.save(tmp_path / "earlier.safetensors"))])
    made.prepare_training()
    own = made.trained_state()
    assert all(torch.equal(own[name], tensor.float()) for name, tensor in earlier.tensors.items())
    assert own["noise.1.unet.conv_in.weight"][:, 3:].abs().max() > 0
    stranger = Artefact("x", earlier.tensors, card={"kind": "delta"}).save(tmp_path / "stranger.safetensors")
    with pytest.raises(UserError, match="not of unit-ddpm"):
        untouched(init_from=[str(stranger)]).prepare_training()
    with pytest.raises(UsageError, match="is a folder: give a model for each domain, or one trained file"):
        untouched(init_from=[str(tmp_path)]).prepare_training()


# ----------------------------------------------------------------------------------------------------------- the walk

WRONG = ["a clean source", "one noise for all times", "the target's network for both"]


@pytest.mark.parametrize(("release", "mistake"), [*((t, None) for t in (0, 1, 400, 1000)), *((400, one) for one in WRONG)])
def test_an_edit_walks_as_the_paper_says(release, mistake):
    found = edited(method(release=release))
    assert torch.allclose(found, by_hand(method(), 10, release, mistake), atol=1e-3) == (mistake is None)


@pytest.mark.parametrize("release", [0, 1, 250, 1000])
def test_calls_of_an_edit(release):
    editor = watched(method(release=release))
    result = editor.edit(requests())
    times = [t for t, *_ in editor.backbone.asked]
    walking = [t for t, *_ in editor.source.asked]
    assert len(times) == 10 and walking == [t for t in times if t + 1 <= release][:-1]
    assert result.scores["network_calls"] == [10.0 + len(walking)] * 2
    pairs = {t: (x, other) for t, x, other in editor.backbone.asked}
    assert all(torch.equal(x, pairs[t][1]) and torch.equal(other, pairs[t][0]) for t, x, other in editor.source.asked)


def test_a_walk_of_every_time_asks_as_often_as_the_paper():
    backbone = PixelBackbone(tiny_backbone().unet, Schedule.linear(40), "v")
    editor = watched(method(backbone=backbone, steps=40, release=12))
    assert editor.edit(requests(1)).scores["network_calls"] == [51.0]
    assert len(editor.backbone.asked) == 40 and len(editor.source.asked) == 11, "the source's step to time 0 is read by nobody"


def test_never_released_and_released_at_the_last_time_are_the_same():
    assert torch.equal(edited(method(release=0)), edited(method(release=1)))
    assert not torch.allclose(edited(method(release=500)), edited(method(release=1)), atol=1e-3)


def test_swapping_the_domains_swaps_the_edit():
    made, swapped = method(), method(domains=("dog", "cat"), target="dog")
    swapped.noise = nn.ModuleList(reversed(list(swapped.noise)))
    assert torch.equal(edited(made), edited(swapped))
    assert not torch.allclose(edited(made), edited(method(target="cat")), atol=1e-3)


def test_translators_do_not_matter_to_an_edit():
    made = method()
    before = edited(made)
    with torch.no_grad():
        for parameter in made.translators.parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(edited(made), before)


def test_it_begins_at_noise_and_below_full_strength_at_the_noised_source():
    editor = watched(method())
    black = [one.with_(image=torch.full_like(one.image, -1)) for one in requests()]
    starts = []
    for strength in (None, 0.5):
        for asked in (requests(), black):
            editor.backbone.asked.clear()
            editor.edit([one.with_(strength=strength) for one in asked])
            starts.append(editor.backbone.asked[0][:2])
    assert torch.equal(starts[0][1], starts[1][1]) and starts[0][0] == 999
    signal = method().backbone.schedule.alpha_bar(499).sqrt()
    assert starts[2][0] == 499
    assert torch.allclose(starts[2][1] - starts[3][1], signal.float() * (images_of(requests()) + 1), atol=1e-5)


def test_a_result_is_its_own_and_another_sample_a_variant():
    made = method(release=500)
    together, alone = edited(made), torch.cat([edited(made, [one]) for one in requests()])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(edited(made, [requests()[0].with_(sample=1)]), alone[:1], atol=1e-2)


# ------------------------------------------------------------------------------------------------------ what it leaves


def test_the_file_holds_the_noise_networks_in_half_precision(tmp_path):
    made = method()
    [path] = made.export(tmp_path)
    kept = Artefact.load(path)
    assert all(name.startswith("noise.") and tensor.dtype == torch.float16 for name, tensor in kept.tensors.items())
    assert sum(tensor.numel() for tensor in kept.tensors.values()) == sum(p.numel() for p in made.noise.parameters())
    assert kept.card["domains"] == ["cat", "dog"]
    again = untouched().editor([kept]).edit(requests()).images
    assert (again - edited(made)).abs().max() < 0.02
    assert not torch.allclose(again, edited(untouched()), atol=0.05)
    with pytest.raises(UserError, match="do not fit this recipe"):
        untouched(backbone=tiny_backbone(block_out_channels=(8, 8))).editor([kept])
    short = {name: tensor for name, tensor in kept.tensors.items() if not name.endswith("conv_in.bias")}
    with pytest.raises(UserError, match="do not fit this recipe"):
        untouched().editor([Artefact("x", short, card=kept.card)])
    with pytest.raises(UserError, match="not of unit-ddpm"):
        untouched().editor([Artefact("x", kept.tensors, card={"kind": "delta"})])


def test_from_training_to_an_edited_file(tmp_path, monkeypatch):
    """By the command line: train, then edit by --weights RUN, either way."""
    monkeypatch.chdir(tmp_path)
    small = [f"backbone.path={write_pixel(tmp_path / 'ddpm')}", "method.width=4", "method.blocks=1", "method.init_from=[]"]
    data = ["data.size=16", "data.train=4", "data.validation=2", "data.test=2"]
    short = ["trainer.steps=2", "trainer.batch_size=2", "trainer.sample_every=2", "trainer=cpu", "logger=csv"]
    assert cli.run(["train", "recipe=unit-ddpm", *small, *data, *short, f"run_dir={tmp_path / 'run'}"]) == 0
    photo = write_images(tmp_path / "photo", 1, side=20) / "0.png"
    command = ["edit", "--method", "unit-ddpm", "--weights", str(tmp_path / "run"), "--image", str(photo), "--steps", "3", *small]
    assert cli.run([*command, "-o", str(tmp_path / "dog.png")]) == 0
    assert cli.run([*command, "-o", str(tmp_path / "cat.png"), "method.target=cat"]) == 0
    assert cli.run([*command, "-o", str(tmp_path / "fox.png"), "method.target=fox"]) == 2
    dog, cat = (pixels(tmp_path / f"{kind}.png") for kind in ("dog", "cat"))
    assert dog.shape == cat.shape == (20, 20, 3) and not np.array_equal(dog, cat)


def test_a_network_that_begins_at_random_is_told_by_its_noise_alone():
    layout = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8, "attention_head_dim": 8}
    layout |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    one, two = (UntrainedPixel(layout, {"prediction_type": "epsilon"}) for _ in range(2))
    assert one.digest() == two.digest() != UntrainedPixel(layout, {"prediction_type": "v_prediction"}).digest()
    assert not torch.equal(one.unet.conv_in.weight, two.unet.conv_in.weight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"domains": ("cat", "dog", "fox")}, "learns two domains"),
        ({"target": "dgo"}, "method.target=dgo is unknown. Did you mean"),
        ({"cycle_norm": "l3"}, "choose from l1, l2"),
        ({"release": 1001}, "choose from 0 to 1000"),
        ({"strength": 0.0}, "out of range"),
        ({"steps": 2000}, "steps do not fit"),
        ({"init_from": ["a", "b", "c"]}, "a model for each domain, one trained file"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, said):
    with pytest.raises(UsageError, match=said):
        untouched(**changes)


def test_a_model_of_latents_is_refused():
    with pytest.raises(UsageError, match="a model of pixels"):
        untouched(backbone=tiny_latent.backbone())
