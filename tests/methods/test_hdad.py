"""HDAE: truncated directions, and levels that move by themselves."""

from __future__ import annotations

import pytest
import torch

from editkit.backbones.hdae import load_hdae
from editkit.backbones.semantic_codes import AttributeClassifier
from editkit.errors import UsageError
from editkit.methods.weakly_supervised.hdad import HDAE, Autoencoder, HDAEEditor, truncated
from editkit.training.code_editor import moved
from editkit.types import EditRequest
from tests.tiny import SIDE, write_diffae

LEVELS = {"8": slice(0, 12), "16": slice(12, 24)}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_diffae(folder)
    return folder


@pytest.fixture
def backbone(assets):
    found = load_hdae(assets / "hdae")
    found.unet.conv_out.weight.data.mul_(0.2)
    return found


@pytest.fixture
def classifier() -> AttributeClassifier:
    torch.manual_seed(3)
    net = AttributeClassifier(attributes=["smiling", "glasses"], dim=24, parts=["8", "16"])
    net.scale.std.uniform_(0.5, 3.0)
    return net.requires_grad_(False)


def editor(backbone, classifier=None, **given):
    return HDAEEditor(backbone, classifier, n_inv=4, n_test=4, **given)


def picture(seed=0):
    return (
        torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        .tanh()
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)[0]
    )


def edited(one, asked):
    return one.edit(asked, one.prepare(asked)).images


ROW = torch.tensor([3.0, -5.0, 1.0, -0.5, 4.0, 2.0, 0.1, -2.5], dtype=torch.float64)


def by_value(row, allowed, keep):
    kept = row.topk(round(keep * len(row))).indices
    left = torch.zeros_like(row).scatter(0, kept, row[kept])
    return left / left.norm() * len(kept) ** 0.5


def not_shortened(row, allowed, keep):
    return truncated(row, allowed, keep) * (len(row) / round(keep * len(row))) ** 0.5


@pytest.mark.parametrize("mistake", [None, by_value, not_shortened], ids=["", "by value", "the length of all coordinates"])
def test_a_direction_keeps_its_largest_weights(mistake):
    found = (mistake or truncated)(ROW, torch.ones(8, dtype=torch.bool), 0.5)
    largest = set(found.nonzero().flatten().tolist()) == {0, 1, 4, 7}
    rms = abs(float(found[found != 0].square().mean().sqrt()) - 1) < 1e-6
    assert (largest and rms) == (mistake is None)


def test_all_of_it_is_the_plain_direction():
    every = torch.ones(8, dtype=torch.bool)
    plain = ROW / ROW.norm() * 8**0.5
    assert torch.allclose(truncated(ROW, every, 1.0), plain) and torch.allclose(truncated(ROW, every, 1.0, renorm=False), plain)
    cut = truncated(ROW, every, 0.25, renorm=False)
    assert torch.equal(cut != 0, torch.tensor([0, 1, 0, 0, 1, 0, 0, 0]) > 0) and torch.allclose(cut[1], plain[1])


@torch.no_grad()
def test_an_edit_touches_as_many_coordinates_as_it_keeps(backbone, classifier):
    codes = torch.randn(2, 24)
    found = editor(backbone, classifier, keep=0.25).moved(classifier, codes, {"smiling": 1.0}, -0.3)
    changed = found != codes
    assert changed.sum(1).tolist() == [6, 6]
    rms = ((found - codes) / classifier.scale.std)[0][changed[0]].square().mean().sqrt()
    assert abs(float(rms) - 0.3) < 1e-5
    chosen = editor(backbone, classifier, keep=0.5, levels=[16]).moved(classifier, codes, {"smiling": 1.0}, 0.3)
    assert torch.equal(chosen[:, LEVELS["8"]], codes[:, LEVELS["8"]]), "forbidden levels stay bit for bit"
    assert (chosen != codes).sum(1).tolist() == [6, 6]
    whole = editor(backbone, classifier, keep=1.0).moved(classifier, codes, {"smiling": 1.0, "glasses": -0.5}, 0.3)
    assert torch.allclose(whole, moved(classifier, codes, {"smiling": 1.0, "glasses": -0.5}, 0.3), atol=1e-5)


def test_no_strength_is_the_reconstruction_bit_for_bit(backbone, classifier):
    one = editor(backbone, classifier)
    asked = [EditRequest("a", picture(), labels="smiling", strength=0.0)]
    plain = edited(one, [EditRequest("a", picture())])
    assert torch.equal(edited(one, asked), plain)
    assert not torch.equal(edited(one, [EditRequest("a", picture(), labels="smiling")]), plain)


def test_levels_are_mixed_by_name(backbone):
    asked = [EditRequest("a", picture(), references=[picture(1)], strength=1.0)]
    own, other = (edited(editor(backbone), [EditRequest("a", picture(n))]) for n in (0, 1))
    near = lambda a, b: torch.allclose(a, b, atol=1e-3)  # noqa: E731 - batches of other sizes round differently
    assert near(edited(editor(backbone, moves=[]), asked), own) and near(edited(editor(backbone), asked), other)
    one = editor(backbone, moves=[8])
    state = one.prepare(asked)
    code, noise = one._mixed(asked[0], 0, state)
    assert torch.equal(code[0, LEVELS["8"]], state.codes[1, LEVELS["8"]]) and torch.equal(noise, state.noises[:1])
    assert torch.equal(code[0, LEVELS["16"]], state.codes[0, LEVELS["16"]])


def test_mistakes_take_a_line(assets, backbone):
    with pytest.raises(UsageError, match="no level 32.*There are: 8, 16"):
        editor(backbone, levels=[32])
    with pytest.raises(UsageError, match="method.keep=0"):
        editor(backbone, keep=0.0)
    with pytest.raises(UsageError, match="two networks to start from"):
        Autoencoder(init_from="a", warm_from="b")
    with pytest.raises(UsageError, match="12 numbers .code. and 24 numbers .8, 16."):
        HDAE(backbone=backbone, classifier=str(assets / "classifier")).editor([])
    assert HDAE(backbone=backbone, classifier=str(assets / "directions")).editor([]).backbone is backbone


def test_training_lowers_the_error(assets):
    method = Autoencoder(warm_from=str(assets / "diffae"), flipped=0.0)
    method.freeze_rest()
    batch, losses = {"image": torch.stack([picture(n) for n in range(4)])}, []
    optimizer = torch.optim.Adam(method.trainable()["autoencoder"], 1e-2)
    torch.manual_seed(0)
    for _ in range(25):
        loss = method.loss(batch)["denoise"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and SIDE == 16
