"""8-bit Adam of bitsandbytes, named in a recipe and kept in checkpoints: by a stand-in, and itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch

from editkit import recipe
from editkit.recipe import RecipeError
from editkit.training import checkpoint
from tests.training import toys

TARGET = "method.optimizer._target_=bitsandbytes.optim.AdamW8bit"
WIDTH = 64  # smaller weights keep a state of 32 bits in bitsandbytes


class StandIn(torch.optim.Optimizer):
    """Momentum in steps of an 127th of its largest value."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                old = self.state[p] or {"state1": torch.zeros_like(p), "absmax1": torch.zeros(())}
                momentum = old["state1"] * old["absmax1"] / 127 * group["betas"][0] + p.grad
                largest = momentum.abs().max()
                self.state[p] = {"state1": (momentum / largest * 127).round().to(torch.int8), "absmax1": largest}
                p.sub_(momentum, alpha=group["lr"])


@pytest.fixture(params=["stand-in", "installed"])
def package(request, monkeypatch) -> str:
    if request.param == "stand-in":
        recipe.validate(recipe.compose(["recipe=instructpix2pix", "data=scene_edits"]))  # other packages look for it on import
        module = types.ModuleType("bitsandbytes.optim")
        monkeypatch.setattr(StandIn, "__module__", "bitsandbytes.optim.adamw")
        module.AdamW8bit = StandIn
        monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    elif importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    return request.param


def composed(*overrides: str):
    return recipe.compose(["recipe=instructpix2pix", "data=scene_edits", TARGET, *overrides])


def new():
    """Return a method with the optimizer of a recipe, and its stepper."""
    cfg = composed("method.optimizer.lr=0.01")
    recipe.validate(cfg)
    made = toys.new(width=WIDTH, optimizer=recipe.build(cfg, "method.optimizer"))
    return made, toys.start(made, steps=9, batch_size=2)


def run(stepper, *seeds: int) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        stepper.run({"image": torch.randn(2, WIDTH)})


def test_a_recipe_makes_it_and_its_state_is_small(package):
    stepper = new()[1]
    (optimizer,) = stepper.optimizers.values()
    assert type(optimizer).__module__.startswith("bitsandbytes.optim") and type(optimizer) is not torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], tuple(group["betas"]), group["weight_decay"]) == (0.01, (0.9, 0.99), 0.01)
    run(stepper, 1)
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["state1"].dtype in (torch.uint8, torch.int8)


def test_a_checkpoint_keeps_its_state_bit_for_bit(package, tmp_path):
    """An easy wrong version begins with an empty state."""
    made, stepper = new()
    run(stepper, 1, 2, 3)
    state = {"stepper": stepper.state_dict()}
    path = checkpoint.save(tmp_path, 3, {n: t.clone() for n, t in made.trained_state().items()}, state)
    run(stepper, 4, 5)
    ends = []
    for with_state in (True, False):
        other, again = new()
        other.frozen.load_state_dict(made.frozen.state_dict())
        snapshot = checkpoint.load(path)
        other.load_trained(snapshot.weights)
        if with_state:
            again.load_state_dict(snapshot.state["stepper"])
        run(again, 4, 5)
        ends.append(all(torch.equal(tensor, other.trained_state()[name]) for name, tensor in made.trained_state().items()))
    assert ends == [True, False]


def test_what_it_does_not_take_is_named(package):
    with pytest.raises(RecipeError, match=r"method\.optimizer\.fused is no argument of .*AdamW8bit\. Leave it out: ~method\.opt"):
        recipe.validate(composed("+method.optimizer.fused=true"))


def test_without_the_package_its_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match=r"method\.optimizer needs bitsandbytes, .*: pip install 'editkit\[8bit\]'"):
        recipe.validate(composed())


def test_nothing_else_of_the_package_may_be_named():
    with pytest.raises(RecipeError, match="is not allowed"):
        composed("method.optimizer._target_=bitsandbytes.optim.Adam8bit")
