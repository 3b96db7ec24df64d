"""With trainer.strategy=fsdp2 each of two processes holds half, and trains what one would that holds everything."""

from __future__ import annotations

import pytest
import torch

from editkit.errors import UsageError
from editkit.training.plan import Plan
from editkit.training.sharding import check_shardable
from tests.conformance.cases import build
from tests.conformance.shares import apart, exported, held, train, weights

FSDP2 = "trainer.strategy=fsdp2"
PAIRS, FACES = "instructpix2pix", "effdiff"
CHANGES = {
    "as it is": (PAIRS,),
    "blocks run again, two batches a step, clipped": (
        PAIRS,
        "method.checkpointing=true",
        "trainer.accumulate=2",
        "trainer.clip_norm=0.01",
    ),
    "low-rank layers": (PAIRS, "method.lora={rank:2}"),
    "watched": (PAIRS, "trainer.sample_every=2", "trainer.ema=0.9"),
    "two networks": ("pbe", "method.dropped=0.5"),
    "two networks, watched": ("pbe", "trainer.sample_every=2", "trainer.ema=0.9", "trainer.clip_norm=0.01"),
    "one network call after another": ("diffusionclip",),
    "the calls run again": ("diffusionclip", "method.checkpointing=true"),
    "every call of the chain a step": ("diffusionclip", "method.training=stepwise"),
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", CHANGES)
def test_two_processes_with_half_the_weights_make_the_updates_of_one(pair, assets, tmp_path, setting):
    task = CHANGES[setting]
    train(task[0], assets, tmp_path / "one", *task[1:])
    pair.run(train, task[0], assets, tmp_path / "two", *task[1:], FSDP2)
    assert apart(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-9


def test_a_run_goes_on_with_any_number_of_processes_and_either_strategy(pair, assets, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(FACES, assets, whole, "trainer.steps=8", "trainer.ema=0.9")
    pair.run(train, FACES, assets, parts, "trainer.steps=2", "trainer.ema=0.9", FSDP2)
    train(FACES, assets, parts, "trainer.steps=4", "trainer.ema=0.9")
    pair.run(train, FACES, assets, parts, "trainer.steps=6", "trainer.ema=0.9")
    own = pair.run(exported, FACES, assets, parts, "trainer.steps=8", "trainer.ema=0.9", FSDP2)
    assert apart(weights(whole), weights(parts)) < 1e-9
    average = exported(FACES, assets, whole, "trainer.steps=8", "trainer.ema=0.9")  # it has ended, and only restores
    for tensors in own:
        assert tensors.keys() == average.keys()
        assert all(torch.allclose(tensors[name], tensor, rtol=2e-3, atol=1e-7) for name, tensor in average.items())


def test_each_process_holds_half(pair, assets, tmp_path):
    alone = held(FACES, assets, tmp_path / "one")
    shares = pair.run(held, FACES, assets, tmp_path / "two", FSDP2)
    assert all(0.49 < share / alone < 0.56 for share in shares)
    assert pair.run(held, FACES, assets, tmp_path / "ddp") == [alone, alone]


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_ends_both(pair, assets, tmp_path):
    with pytest.raises(RuntimeError, match="NotFinite"):
        pair.run(train, PAIRS, assets, tmp_path, "method.optimizer.lr=1e300", FSDP2)
    pair.run(train, PAIRS, assets, tmp_path / "after", FSDP2)  # and leaves them as they were


def test_what_cannot_be_shared_out_is_refused(assets):
    with pytest.raises(UsageError, match="what CycleNet trains; use trainer.strategy=ddp"):
        check_shardable(build("cyclenet", assets)[1])
    with pytest.raises(UsageError, match="strategy=zero is unknown; give ddp or fsdp2"):
        Plan(strategy="zero")
    with pytest.raises(UsageError, match="ema_device"):
        Plan(strategy="fsdp2", devices=2, ema=0.9, ema_device="cpu")
    assert not Plan(strategy="fsdp2").sharded, "one process shares with none"
