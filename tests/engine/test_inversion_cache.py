"""The inversion cache: what its keys tell apart, and what it does about damage."""

from __future__ import annotations

import functools
import logging

import pytest
import torch

from editkit.engine.cache import InversionCache
from editkit.engine.fingerprint import fingerprint
from editkit.engine.guidance import ClassifierFree, Energy, Guided
from editkit.engine.invert import DDIM, EditFriendly, FixedPoint
from editkit.types import Condition
from tests.engine.stand_ins import Calls, random


@pytest.fixture
def cache(tmp_path):
    return InversionCache(tmp_path / "cache")


@pytest.fixture
def levels(gaussian):
    return gaussian.schedule.levels(6)


def test_the_second_time_nothing_is_asked_and_the_bits_are_the_same(cache, gaussian, levels, x0):
    counted = Calls(gaussian)
    invert = functools.partial(cache.invert, FixedPoint(1), counted, x0, levels, weights="w")
    first = invert()
    asked = len(counted.times)
    second = invert()
    assert len(counted.times) == asked > 0
    assert torch.equal(first.x, second.x) and first.report == second.report


def test_only_missing_images_go_through_the_network(cache, gaussian, levels, x0):
    counted = Calls(gaussian)
    cond = Condition(vector=random((3, 48), 4))
    middle = cache.invert(DDIM(), counted, x0[1:2], levels, Condition(vector=cond.vector[1:2]), weights="w")
    together = cache.invert(DDIM(), counted, x0, levels, cond, weights="w")
    assert counted.batches == [1] * 5 + [2] * 5
    assert torch.equal(together.x[1:2], middle.x)
    torch.testing.assert_close(together.x, DDIM().invert(gaussian, x0, levels, cond).x, rtol=1e-9, atol=1e-9)


def test_everything_that_decides_the_result_is_part_of_the_key(cache, gaussian, levels, x0):
    image = x0[0]
    base = {"weights": "w", "levels": levels, "inverter": DDIM(), "cond": None, "dtype": torch.float32}
    changed = image.clone()
    changed[0, 0, 0] += 1e-12
    changes = [
        {"weights": "other"},
        {"levels": gaussian.schedule.levels(7)},
        {"inverter": DDIM("target")},
        {"inverter": FixedPoint(2)},
        {"inverter": FixedPoint(3)},
        {"cond": Condition(vector=torch.ones(1, 3))},
        {"cond": Condition(vector=torch.ones(1, 3).double())},
        {"cond": Condition(tokens=torch.ones(1, 3))},
        {"dtype": torch.bfloat16},
        {"extra": "seed 1"},
    ]
    keys = [cache.key(image, **(base | change)) for change in ({}, *changes)]
    keys += [cache.key(other, **base) for other in (changed, image.float(), image.reshape(4, 3, 4))]
    assert len(set(keys)) == len(keys)
    assert cache.key(image.clone(), **base) == keys[0]


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_entry_is_computed_again(cache, gaussian, levels, x0, damage, caplog):
    invert = functools.partial(cache.invert, DDIM(), gaussian, x0[:1], levels, weights="w")
    first = invert()
    (path,) = cache.root.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(invert().x, first.x)
    assert "damaged" in caplog.text
    caplog.clear()
    assert torch.equal(invert().x, first.x) and not caplog.text


def test_noise_belongs_to_the_key(cache, gaussian, levels, x0, noise):
    with pytest.raises(ValueError, match="noise_keys"):
        cache.invert(EditFriendly(), gaussian, x0, levels, weights="w", noise=noise(x0))
    seeds = [
        cache.invert(
            EditFriendly(),
            gaussian,
            x0,
            levels,
            weights="w",
            noise=noise(x0, seed),
            noise_keys=[(seed, f"{n}.png") for n in range(3)],
        )
        for seed in (0, 1)
    ]
    assert not torch.equal(seeds[0].x, seeds[1].x)
    alone = cache.invert(
        EditFriendly(), gaussian, x0[2:], levels, weights="w", noise=lambda i: noise(x0)(i)[2:], noise_keys=[(0, "2.png")]
    )
    assert torch.equal(alone.x, seeds[0].x[2:])


def test_guidance_belongs_to_the_key(cache, gaussian, levels, x0):
    uncond = Condition(vector=torch.ones(1, 48))
    plain = cache.invert(DDIM(), gaussian, x0, levels, uncond, weights="w")
    for weight in (2.0, 3.0):
        guided = Guided(gaussian, ClassifierFree(weight, Condition(vector=torch.zeros(1, 48))))
        assert not torch.equal(cache.invert(DDIM(), guided, x0, levels, uncond, weights="w").x, plain.x)
    with pytest.raises(TypeError, match="function"):
        cache.invert(DDIM(), Guided(gaussian, Energy(lambda x, t: x, 1.0)), x0, levels, uncond, weights="w")


def test_nothing_half_written_is_left(cache, gaussian, levels, x0, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.invert(DDIM(), gaussian, x0, levels, weights="w")
    assert not [path for path in cache.root.rglob("*") if path.is_file()]


def test_fingerprints():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    values = [
        1,
        1.0,
        True,
        "1",
        None,
        [1],
        [[1]],
        ["1", "1"],
        ["11"],
        {"a": 1},
        torch.ones(1),
        torch.ones(1, 1),
        b"1",
        torch.zeros(1),
        torch.zeros(1).int(),
    ]
    assert len({fingerprint(value) for value in values}) == len(values)
    strided = torch.arange(6).reshape(2, 3)
    assert fingerprint(strided.T) == fingerprint(strided.T.contiguous()) != fingerprint(strided)
