"""DiffusionCLIP's precomputation, learning rate and runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from editkit import recipe
from editkit.engine.count import count_calls
from editkit.engine.invert import DDIM
from editkit.errors import UsageError
from tests.methods.asyrp_parts import Images, TinyClip, ready, tiny_backbone
from tests.methods.diffusionclip_parts import T0, tiny_method

CALLS = 6


def first_update(method, data, rows=(0, 1)):
    return next(iter(method.updates(data.batch(list(rows)))))


# Precomputation.


def test_each_image_that_is_used_takes_n_inv_minus_1_calls_and_no_other_one_takes_any():
    clip, data = TinyClip(), Images(4)
    method = ready(tiny_method(clip=clip), steps=None, images=12)
    with count_calls(method.backbone, flops=False) as counter:
        method.precompute(data)
        assert counter.evaluations == 4 * 7 and clip.seen == 4
        for rows in ([0, 1], [2, 3], [1, 0], [3, 2]):
            method.stepper.run(data.batch(rows))
        assert counter.evaluations == 4 * 7, "training does not ask the original network"
    assert clip.seen == 4 + 8, "the edited images alone"


@pytest.mark.parametrize("plan", [{"steps": None, "images": 2}, {"steps": 1}])
def test_images_that_are_never_shown_are_not_inverted(plan):
    data = Images(4)
    method = ready(tiny_method(), **plan)
    with count_calls(method.backbone, flops=False) as counter:
        method.precompute(data)
        assert counter.evaluations == 0 and not method.kept
        method.stepper.run(data.batch([2, 1]))
    assert counter.evaluations == 2 * 7


def test_a_stepwise_plan_in_steps_shows_fewer_images():
    data = Images(4)
    method = ready(tiny_method(training="stepwise"), steps=12)  # two batches
    with count_calls(method.backbone, flops=False) as counter:
        method.precompute(data)
    assert counter.evaluations == 0


def test_another_prompt_takes_the_inversions_from_the_cache(tmp_path):
    data, backbone = Images(4), tiny_backbone()
    ready(tiny_method(backbone=backbone, cache=str(tmp_path))).precompute(data)
    other = ready(tiny_method(backbone=backbone, cache=str(tmp_path), prompt="an old face"))
    with count_calls(backbone, flops=False) as counter:
        other.precompute(data)
    assert counter.evaluations == 0
    deeper = ready(tiny_method(backbone=backbone, cache=str(tmp_path), t0=400))
    with count_calls(backbone, flops=False) as counter:
        deeper.precompute(data)
    assert counter.evaluations == 4 * 7


def test_kept_sources_are_those_of_the_batch_whatever_the_precision():
    method, data = ready(tiny_method()), Images(4)
    with torch.autocast("cpu", torch.bfloat16):
        fresh = method.sources(data.batch([2, 0]))
    method.precompute(data)
    kept = method.sources(data.batch([2, 0]))
    assert set(kept) == {"x", "clip", "identity"}
    assert all(torch.allclose(fresh[name], kept[name], atol=1e-4) for name in kept)


def test_states_are_the_original_network_s_however_long_training_went_on():
    """An easy wrong version inverts with the network that is trained: the states would move with it."""
    method, data = ready(tiny_method(optimizer=partial(torch.optim.Adam, lr=1e-2))), Images(4)
    before = method.compute_sources(data.images)["x"]
    for _ in range(3):
        method.stepper.run(data.batch([0, 1]))
    assert torch.equal(method.compute_sources(data.images)["x"], before)
    with torch.no_grad():
        wrong = DDIM(query="source").invert(method.network(), data.images, method.backbone.schedule.levels(8, start=T0)).x
    assert not torch.allclose(wrong, before, atol=1e-3)


# The rate, and starting anew.


@pytest.mark.parametrize(
    ("name", "gamma"), [("diffusionclip", 1.02), ("paper/diffusionclip", 1.2), ("effdiff", 1.02), ("paper/effdiff", 1.3)]
)
def test_the_rate_grows_by_gamma_each_epoch(name, gamma):
    cfg = recipe.frozen(recipe.compose([f"recipe={name}", *(["data.root=x"] if name.startswith("paper") else [])]))
    method = recipe.compose([f"recipe={name}"]).method
    weight = [torch.nn.Parameter(torch.zeros(1))]
    adam = torch.optim.Adam(weight, lr=method.optimizer.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(adam, method.scheduler.step_size, method.scheduler.gamma)
    epoch = cfg["data"].get("train", 50) // cfg["trainer"]["batch_size"]
    assert method.scheduler.step_size == epoch
    rates = []
    for _ in range(cfg["trainer"]["images"] // cfg["trainer"]["batch_size"]):
        rates.append(adam.param_groups[0]["lr"])
        adam.step()
        scheduler.step()
    assert [rates[e * epoch] for e in range(5)] == pytest.approx([method.optimizer.lr * gamma**e for e in range(5)])
    # an easy wrong version lets it fall
    assert rates == sorted(rates) and rates[-1] > rates[0]


def test_another_text_starts_from_the_backbone_s_own_bytes():
    backbone, data = tiny_backbone(), Images(2)
    before = backbone.digest()
    first = ready(tiny_method(backbone=backbone))
    first.stepper.run(data.batch([0, 1]))
    assert backbone.digest() == before != first.network().digest()
    second = ready(tiny_method(backbone=backbone, prompt="an old face"))
    assert second.network().digest() == before
    assert not second.stepper.optimizers["unet"].state


def test_the_text_may_decide_the_time():
    table = {"tanned": 201, "male": 401}
    times = [tiny_method(prompt=text, t0_by_word=table).t0 for text in ("Tanned face", "a female face", "a male face")]
    assert times == [201, T0, 401]
    with pytest.raises(UsageError, match="start time 5000"):
        tiny_method(t0=5000)
    with pytest.raises(UsageError, match="training=quick"):
        tiny_method(training="quick")


def test_a_mix_can_be_typed():
    cfg = recipe.frozen(recipe.compose(["recipe=diffusionclip", "method.mix={300: [1, 0], 0: [0.3, 0.7]}"]))
    assert {float(t): row for t, row in cfg["method"]["mix"].items()} == {300: [1, 0], 0: [0.3, 0.7]}


def test_a_sample_grid_shows_source_half_and_full():
    method, data = ready(tiny_method()), Images(4)
    assert method.sample_grid() is None
    method.precompute(data)
    grid = method.sample_grid()
    assert grid.shape == (4, 3, 3, 8, 8)
    assert torch.equal(grid[:, 0], data.images)
