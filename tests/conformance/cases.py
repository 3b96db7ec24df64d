"""Every recipe there is, built tiny. A new recipe is found by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editkit import recipe
from editkit.engine.precision import computes_bf16
from editkit.training.artefact import Artefact
from editkit.training.editor import Editor
from editkit.training.method import Method
from editkit.training.plan import Plan
from editkit.training.stepper import Stepper
from tests.tiny import shrink

# The paper recipes build the same methods from other values: composing them is part of the fast tests (test_house).
RECIPES = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("paper/") else name for name in recipe.choices("recipe")]


@dataclass
class Case:
    """A recipe's method after two batches.

    Attributes:
        stepper: None when there is nothing to train.
        before, after: all tensors of the method before and after the two batches.
        artefacts: what was exported then, as read back from the disk.
    """

    name: str
    method: Method
    stepper: Stepper | None
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    artefacts: list[Artefact]

    def needs_training(self) -> Stepper:
        """Return the stepper, or skip the test."""
        if self.stepper is None:
            pytest.skip("nothing to train")
        return self.stepper

    def editor(self) -> Editor:
        """Return the editor with the exported artefacts, or skip the test."""
        editor = self.method.editor(self.artefacts)
        if editor is None:
            pytest.skip("edits nothing")
        return editor


def make(name: str, assets: Path, folder: Path) -> Case:
    """Build, train two batches and export."""
    method = build(name, assets)[1]
    if not method.trained_parameters():
        return Case(name, method, None, {}, {}, [])
    method = start(name, assets)
    before = snapshot(method)
    step(method, 2)
    after = snapshot(method)
    files = method.export(folder)
    artefacts = loaded(files, folder) if method.artefacts() else []
    return Case(name, method, method.stepper, before, after, artefacts)


def loaded(files: Sequence[Path], folder: Path) -> list[Artefact]:
    """Return the artefacts of an export; what lies in folders of it is for other programs."""
    return [Artefact.load(path) for path in files if path.parent == folder]


def build(name: str, assets: Path) -> tuple[Any, Method]:
    """Return the tiny configuration of a recipe and its method, the same one at each call."""
    cfg = recipe.compose([*shrink(name, assets), "trainer.ema=0.9"])
    torch.manual_seed(0)
    return cfg, recipe.build(cfg, "method")


def start(name: str, assets: Path) -> Method:
    """Return a method as it stands before its first batch, by the steps of `fit`."""
    cfg, method = build(name, assets)
    torch.manual_seed(1)
    method.prepare_training()
    method.freeze_rest()
    method.train()
    method.stepper = Stepper(method, Plan(**recipe.frozen(cfg)["trainer"]))
    method.stepper.make_optimizers()
    method.precompute(recipe.build(cfg, "data").train_dataset())
    return method


def step(method: Method, times: int = 1) -> None:
    """Take the updates of the method's dummy batch, from a fixed seed."""
    torch.manual_seed(2)
    assert method.stepper is not None
    with precision(method.stepper):
        for _ in range(times):
            method.stepper.run(method.dummy_batch())


def precision(stepper: Stepper) -> contextlib.AbstractContextManager[None]:
    """Return the recipe's own precision, as `fit` has Lightning set it around a batch."""
    return torch.autocast("cpu", torch.bfloat16, enabled=str(stepper.plan.precision) == "bf16" and computes_bf16("cpu"))


def snapshot(method: Method) -> dict[str, Tensor]:
    """Return copies of all tensors of a method."""
    return {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
