"""What a run may change on its way, and what then holds: the learning rate that is asked for, not the checkpoint's."""

from __future__ import annotations

import csv
import functools

import pytest
import torch
import yaml

from editkit.errors import UserError
from editkit.training import checkpoint, fitting
from editkit.training.fit import fit
from editkit.training.fitting import DoesNotFit
from editkit.training.plan import Plan
from editkit.training.rundir import RunDir
from tests.training.test_fit import PLAN, final
from tests.training.toys import Copy, Numbers, new

ADAM, ONE_CYCLE = torch.optim.Adam, torch.optim.lr_scheduler.OneCycleLR


def recipe(lr=0.01, scheduler=None, seed=0, optimizer="torch.optim.Adam", train=10):
    method = {"optimizer": {"_target_": optimizer, "lr": lr}, "scheduler": scheduler}
    return yaml.safe_dump({"seed": seed, "method": method, "data": {"train": train}})


def train(folder, config, *, lr=0.01, total=None, images=10, method=None, **plan):
    scheduler = None if total is None else functools.partial(ONE_CYCLE, max_lr=lr, total_steps=total)
    method = method or new(optimizer=functools.partial(ADAM, lr=lr), scheduler=scheduler)
    fit(method, Numbers(images), Plan(**{**PLAN, "log_every": 1, **plan}), RunDir(folder), config=config)
    return method


def rates(folder):
    with RunDir(folder).metrics.open() as file:
        return [float(row["lr/net"]) for row in csv.DictReader(file)]


def test_a_longer_schedule_is_the_longer_schedule(tmp_path):
    """An easy wrong version takes the old length from the checkpoint, and its learning rate ends far too early."""
    train(tmp_path / "long", recipe(scheduler={"total_steps": 16}), total=16, steps=16)
    train(tmp_path / "run", recipe(scheduler={"total_steps": 8}), total=8, steps=6)
    train(tmp_path / "run", recipe(scheduler={"total_steps": 16}), total=16, steps=16)
    long = rates(tmp_path / "long")
    assert rates(tmp_path / "run")[6:] == pytest.approx(long[6:], rel=1e-5)
    assert rates(tmp_path / "run")[:6] != pytest.approx(long[:6], rel=1e-3)


def test_the_same_schedule_is_continued_to_the_bit(tmp_path):
    config = recipe(scheduler={"total_steps": 8})
    train(tmp_path / "whole", config, total=8, steps=8)
    train(tmp_path / "run", config, total=8, steps=3)
    train(tmp_path / "run", config, total=8, steps=8)
    assert final(tmp_path / "run") == final(tmp_path / "whole")


def test_another_learning_rate_holds_from_there_on_and_the_moments_stay(tmp_path):
    train(tmp_path, recipe(), steps=4)
    newest = checkpoint.newest(RunDir(tmp_path).checkpoints)
    before = checkpoint.load(newest).state["stepper"]["optimizers"]["net"]["state"]
    method = train(tmp_path, recipe(lr=0.002), lr=0.002, steps=5)
    assert rates(tmp_path) == pytest.approx([0.01] * 4 + [0.002])
    after = method.stepper.optimizers["net"].state_dict()["state"]
    assert after[0]["step"] == before[0]["step"] + 1 == 5, "Adam goes on, it does not start again"


def test_a_schedule_where_there_was_none_begins_where_the_run_is(tmp_path):
    train(tmp_path / "long", recipe(scheduler={"total_steps": 8}), total=8, steps=8)
    train(tmp_path / "run", recipe(), steps=4)
    train(tmp_path / "run", recipe(scheduler={"total_steps": 8}), total=8, steps=8)
    assert rates(tmp_path / "run")[4:] == pytest.approx(rates(tmp_path / "long")[4:], rel=1e-5)


def test_a_schedule_that_ends_before_the_training_says_so_and_loses_nothing(tmp_path):
    with pytest.raises(UserError, match=r"the schedule of 'net' ends before the training .*--accept-changes"):
        train(tmp_path, recipe(scheduler={"total_steps": 4}), total=4, steps=8, save_every_s=0)
    assert final(tmp_path)[0] == "step-00000004"
    with pytest.raises(DoesNotFit, match="does not fit this configuration"):
        train(tmp_path, recipe(scheduler={"total_steps": 3}), total=3, steps=8)
    train(tmp_path, recipe(scheduler={"total_steps": 8}), total=8, steps=8)
    assert final(tmp_path)[0] == "step-00000008"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "saved with seed=0, now it is 1"),
        ({"optimizer": "torch.optim.SGD"}, "saved with method.optimizer._target_=torch.optim.Adam, now it is torch.optim.SGD"),
    ],
)
def test_what_cannot_change_on_the_way_is_refused(tmp_path, change, message):
    train(tmp_path, recipe(), steps=2)
    before = final(tmp_path)
    with pytest.raises(DoesNotFit, match=message) as refused:
        train(tmp_path, recipe(**change), steps=4)
    assert "--fresh" in str(refused.value) and "\n" not in str(refused.value) and final(tmp_path) == before


def test_a_network_of_another_shape_is_refused(tmp_path):
    train(tmp_path, recipe(), steps=2)
    with pytest.raises(DoesNotFit, match=r"does not fit this configuration \(net.0.weight has shape \(4, 4\) in the file"):
        train(tmp_path, recipe(), steps=4, method=Copy(width=5))

    class Wider(Copy):
        def prepare_training(self):
            self.net.append(torch.nn.Linear(4, 4))

    with pytest.raises(DoesNotFit, match=r"does not fit this configuration \(the trained parts differ"):
        train(tmp_path, recipe(), steps=4, method=Wider())


def test_other_data_are_refused_but_a_folder_may_have_grown(tmp_path):
    train(tmp_path, recipe(), steps=2)
    with pytest.raises(DoesNotFit, match="is of 10 training images, now there are 12, in another order"):
        train(tmp_path, recipe(train=12), steps=4, images=12)
    with pytest.warns(UserWarning, match="is of 10 training images, now there are 12: their order from here on is another"):
        train(tmp_path, recipe(), steps=4, images=12)


def test_only_the_rates_are_looked_at():
    assert not fitting.other_rates("", "") and not fitting.other_rates(recipe(), recipe(seed=1, train=3))
    assert fitting.other_rates(recipe(), recipe(lr=0.1)) and fitting.other_rates(recipe(), recipe(scheduler={"T_max": 1}))
