"""Noise by name: the same wherever and with whomever an image is worked on."""

from __future__ import annotations

import itertools

import pytest
import torch

from editkit.engine.rng import batch_noise, level_noise, noise

SHAPE = (3, 8, 8)
NAME = {"seed": 0, "key": "a/b.png", "sample": 0, "purpose": "step/1"}


def test_noise_is_a_function_of_its_name():
    state = torch.get_rng_state()
    assert torch.equal(noise(SHAPE, **NAME), noise(SHAPE, **NAME))
    assert torch.equal(state, torch.get_rng_state())


def test_every_part_of_the_name_matters():
    others = [{"seed": 1}, {"key": "a/c.png"}, {"sample": 1}, {"purpose": "step/11"}, {"seed": -1}]
    drawn = [noise(SHAPE, **(NAME | change)) for change in ({}, *others)]
    for one, other in itertools.combinations(drawn, 2):
        assert abs(float((one * other).mean())) < 0.3 and not torch.equal(one, other)


def test_names_do_not_run_into_each_other():
    """Easy wrong version: joining the parts of a name without a border between them."""
    assert not torch.equal(noise(SHAPE, seed=1, key="1", purpose=""), noise(SHAPE, seed=11, key="", purpose=""))


def test_the_batch_does_not_matter():
    keys = ["a", "b", "c"]
    together = batch_noise(SHAPE, keys, seed=3, purpose="x")
    for n, key in enumerate(keys):
        assert torch.equal(together[n], noise(SHAPE, seed=3, key=key, purpose="x"))
    assert torch.equal(batch_noise(SHAPE, keys[::-1], seed=3, purpose="x"), together.flip(0))


def test_seeds_and_samples_may_differ_within_a_batch():
    drawn = batch_noise(SHAPE, ["a", "a"], seed=[1, 2], sample=[5, 6], purpose="x")
    assert torch.equal(drawn[1], noise(SHAPE, seed=2, key="a", sample=6, purpose="x"))
    with pytest.raises(ValueError):
        batch_noise(SHAPE, ["a", "b"], seed=[1], purpose="x")


def test_noise_is_drawn_in_float32_then_cast():
    full = noise(SHAPE, **NAME)
    assert torch.equal(noise(SHAPE, **NAME, dtype=torch.bfloat16), full.bfloat16())
    assert torch.equal(noise(SHAPE, **NAME, dtype=torch.float64), full.double())


def test_levels_are_independent():
    at = level_noise(SHAPE, ["a"], seed=0)
    assert torch.equal(at(3), at(3)) and not torch.equal(at(3), at(4))
    assert torch.equal(at(3)[0], noise(SHAPE, seed=0, key="a", purpose="step/3"))


def test_noise_is_standard_normal():
    drawn = noise((100_000,), **NAME)
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.std()) - 1) < 0.02


def test_noise_of_a_known_name_never_changes():
    """A changed hash or draw would change every published result silently."""
    known = torch.tensor([-1.155732274055481, 0.5243615508079529, 1.1386070251464844, 0.31552621722221375])
    torch.testing.assert_close(noise((4,), **NAME), known, rtol=1e-5, atol=1e-6)
