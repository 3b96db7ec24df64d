"""StyleDiffusion: its invariants, and easy wrong versions that break them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils import parameters_to_vector as vector

from editkit import recipe
from editkit.engine.cache import InversionCache
from editkit.engine.count import count_calls
from editkit.errors import UsageError, UserError
from editkit.methods.weakly_supervised.stylediffusion.style import Disentanglement, Removal, luma, style_picture
from tests.methods.asyrp_parts import Images, ready, tiny_backbone
from tests.methods.diffusionclip_parts import reconstruction
from tests.methods.stylediffusion_parts import (
    BATCHES,
    N_TRAIN,
    REPEATS,
    N,
    TinyClip,
    editor_of,
    epoch,
    gray,
    removed,
    tiny_method,
    trained,
)

WRONG = (
    "coloured contents",
    "contents compared in colour",
    "the style picture itself",
    "colours of the removal",
    "unit embeddings",
    "one sum of both",
    "no reconstruction first",
    "the gray style picture",
    "inverted by the tuned network",
)


@pytest.fixture(scope="module")
def images():
    return Images(4)


# Training.


@pytest.fixture(scope="module")
def one_epoch(images):
    return trained(images)


def difference(method, images, wrong=None):
    """Return how far the method's network moved, and how far it is from that of the epoch by hand."""
    (left, right), original = [images.images[rows] for rows in BATCHES], method.backbone
    by_hand = epoch(original, TinyClip(), method.picture, [left, right], wrong)
    own, start, theirs = (vector(one.parameters()).detach() for one in (method.network(), original, by_hand))
    return float((own - start).norm()), float((own - theirs).norm())


def test_an_epoch_is_that_of_the_paper_written_by_hand(one_epoch, images):
    moved, apart = difference(one_epoch, images)
    assert apart < 1e-3 * moved


@pytest.mark.parametrize("wrong", WRONG)
def test_easy_wrong_versions_of_an_epoch_are_noticed(one_epoch, images, wrong):
    moved, apart = difference(one_epoch, images, wrong)
    assert apart > 1e-2 * moved


def kinds(method, data, rows):
    """Return what the updates of the batch are of, as the stepper would have them take it."""
    method.stepper.images += method.stepper.plan.batch_size
    return ["+".join(sorted(update.losses)) for update in method.updates(data.batch(rows))]


def test_each_epoch_begins_with_the_style_picture(images):
    method = ready(tiny_method())
    method.precompute(images)
    style, content = ["style"] * N_TRAIN * REPEATS, ["direction+l1"] * N_TRAIN
    assert [kinds(method, images, rows) for rows in (*BATCHES, *BATCHES)] == [style + content, content] * 2
    method.stepper.images = 2  # a run that was stopped goes on within its epoch
    assert kinds(method, images, [2, 3]) == content


@pytest.mark.parametrize(("size", "begun"), [(3, [1, 1, 1, 0]), (8, [2, 2, 2, 2])])
def test_a_batch_may_begin_an_epoch_in_its_midst_or_several(images, size, begun):
    method = ready(tiny_method(), batch_size=size)
    method.precompute(images)
    rows = list(range(size - 4, 4)) or [0]
    assert [kinds(method, images, rows).count("style") // N_TRAIN // REPEATS for _ in begun] == begun


def test_the_original_network_stays_and_is_the_only_one_that_inverts(one_epoch, images):
    assert one_epoch.backbone.digest() == tiny_backbone().digest() != one_epoch.network().digest()
    fresh = ready(tiny_method())
    assert torch.equal(fresh.compute_sources(images.images)["x"], one_epoch.compute_sources(images.images)["x"])
    assert all(p.grad is None for p in one_epoch.backbone.parameters())


def test_what_does_not_change_is_computed_once(images):
    clip = TinyClip()
    method = ready(tiny_method(clip=clip), steps=1000)
    method.precompute(images)
    assert clip.seen == 4
    with count_calls(method.backbone, flops=False) as counter:
        for rows in (*BATCHES, *BATCHES):
            method.stepper.run(images.batch(rows))
    assert counter.evaluations == (2 * N - 1) + (N - 1), "the style picture's removal and inversion"
    assert clip.seen == 4 + 2 + 4 * N_TRAIN * 2, "contents and the style picture once, then results alone"


def test_training_brings_the_style_picture_back(images):
    method = trained(images, BATCHES * 3, optimizer=partial(torch.optim.Adam, lr=2e-3), style_repeats=6)
    editors = [editor_of(method.backbone, network, removal=method.removal) for network in (method.backbone, method.network())]
    request = Images(1).requests()[0].with_(image=method.picture[0])
    before, after = ((editor.edit([request]).images - method.picture).abs().mean() for editor in editors)
    assert after < before


@pytest.mark.parametrize(("name", "gamma"), [("stylediffusion", 1.08), ("paper/stylediffusion", 1.2)])
def test_the_rate_grows_each_epoch(name, gamma):
    cfg = recipe.compose([f"recipe={name}"])
    contents, method = cfg.data.get("train", 50), cfg.method
    assert method.scheduler.step_size == method.n_train * (method.style_repeats + contents // cfg.trainer.batch_size)
    assert method.scheduler.gamma == gamma and cfg.trainer.images % contents == 0


# What a style is.


def test_luma_is_that_of_the_standard(images):
    ours = luma(images.images)
    torch.testing.assert_close(ours, gray(images.images))
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    theirs = np.asarray(Image.fromarray(levels.numpy()).convert("L"))
    own = luma(levels.permute(2, 0, 1)[None].float())[0, 0].numpy()
    assert np.abs(own - theirs).max() <= 0.6
    assert np.abs(levels.float().mean(-1).numpy() - theirs).max() > 5, "the channels' mean is another gray"


def test_removal_sees_no_hue(backbone, images):
    method = tiny_method(backbone=backbone)
    other = images.images + torch.tensor([0.587, -0.299, 0.0])[:, None, None] * 0.3
    torch.testing.assert_close(method.removal(other), method.removal(images.images), atol=1e-5, rtol=0)
    torch.testing.assert_close(method.removal(images.images), removed(backbone, images.images), atol=1e-4, rtol=1e-4)
    colours = reconstruction(backbone, other, N, 601)  # an easy wrong version leaves the colours in
    assert not torch.allclose(colours, reconstruction(backbone, images.images, N, 601), atol=1e-2)


def test_removal_comes_to_luma_as_its_time_goes_to_0(backbone, images):
    def distance(t):
        method = tiny_method(backbone=backbone, t_removal=t)
        return float((method.removal(images.images) - luma(images.images)).abs().mean())

    assert distance(10) < 1e-2 < distance(601)


def test_removal_counts_its_calls_and_a_cache_saves_half(backbone, images, tmp_path):
    removal = tiny_method(backbone=backbone, cache=str(tmp_path)).removal
    assert isinstance(removal, Removal) and isinstance(removal.cache, InversionCache)
    for calls in (removal.calls, N):
        with count_calls(backbone, flops=False) as counter:
            removal(images.images)
        assert counter.calls == calls


def terms_of(clip, picture, without, **weights):
    style = clip.projected(picture) - clip.projected(without)
    return Disentanglement(clip.projected, style, **{"l1_weight": 10.0, "direction_weight": 1.0} | weights)


def test_a_content_that_moved_as_the_style_picture_did_has_no_loss(images):
    clip, (picture, without, other, _) = TinyClip(), images.images.split(1)
    criterion = terms_of(clip, picture, without)
    terms, report = criterion(picture, clip.projected(without))
    assert float(terms["l1"]) < 1e-5 and abs(float(terms["direction"])) < 1e-5 and float(report["clip_direction"]) > 0.999
    terms, _ = criterion(other, clip.projected(without))
    assert float(terms["l1"]) > 0.1 and float(terms["direction"]) > 0.01


def test_a_common_shift_in_clip_changes_nothing(images):
    clip, (picture, without, other, content) = TinyClip(), images.images.split(1)
    criterion = terms_of(clip, picture, without)
    shifted = Disentanglement(lambda x: clip.projected(x) + 3.0, criterion.style, 10.0, 1.0)
    for name, value in criterion(other, clip.projected(content))[0].items():
        torch.testing.assert_close(shifted(other, clip.projected(content) + 3.0)[0][name], value, atol=1e-4, rtol=1e-4)


def test_a_style_without_a_difference_has_finite_gradients(images):
    """A gray photograph as the style picture, and a result that has not moved."""
    clip, picture = TinyClip(), images.images[:1]
    leaf = picture.clone().requires_grad_()
    terms, _ = terms_of(clip, picture, picture)(leaf, clip.projected(picture))
    (slope,) = torch.autograd.grad(sum(terms.values()).sum(), leaf)
    assert torch.isfinite(slope).all()


def test_a_style_picture_is_a_file_or_a_toy_style(tmp_path):
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 12:28] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert torch.equal(style_picture(str(tmp_path / "wide.png"), (16, 16)), torch.ones(3, 16, 16)), "the middle square"
    assert style_picture(str(tmp_path / "wide.png"), (8, 8)).shape == (3, 8, 8)
    neon, pencil = (style_picture(f"toy:{name}", (16, 16)) for name in ("neon", "pencil"))
    assert neon.shape == (3, 16, 16) and neon.mean() < pencil.mean()
    with pytest.raises(UserError, match=r"there is no file .*gone\.png"):
        style_picture(str(tmp_path / "gone.png"), (8, 8))
    with pytest.raises(UsageError, match="no style 'pencl'. Did you mean 'pencil'"):
        style_picture("toy:pencl", (8, 8))
    with pytest.raises(UsageError, match="content_removal=grey is unknown"):
        tiny_method(content_removal="grey")
    with pytest.raises(UsageError, match=r"one picture: give method\.style=FILE"):
        tiny_method(style=None).prepare_training()
