"""fit: train a method in a run directory, from the start or from where it stopped."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from editkit.engine.precision import computes_bf16
from editkit.errors import UsageError, UserError
from editkit.training.method import Method
from editkit.training.metrics_csv import CsvLog
from editkit.training.order import Order, batches
from editkit.training.plan import Plan
from editkit.training.randomness import derive, isolated
from editkit.training.rundir import RunDir, announced, is_first_process
from editkit.training.session import Session
from editkit.training.sharding import Sharded, check_shardable
from editkit.training.stepper import Stepper
from editkit.training.throughput import Throughput, Timed


@dataclass(frozen=True)
class Outcome:
    """How a call of `fit` ended.

    Attributes:
        steps, images: since the run's start.
        seconds: of this call, without the time of earlier, interrupted ones.
        new_steps: of this call.
        resumed: the checkpoint it continued from.
        stopped_by: name of the signal that ended it early; the same call continues.
    """

    steps: int
    images: int
    seconds: float
    new_steps: int
    resumed: Path | None = None
    stopped_by: str | None = None


def fit(
    method: Method,
    dataset: Any,
    plan: Plan,
    run: RunDir,
    *,
    seed: int = 0,
    config: str = "",
    title: str = "train",
    loggers: Sequence[Logger] = (),
) -> Outcome:
    """Train until the planned length; the method then holds the trained weights and its stepper the average.

    Args:
        dataset: the training set, with a length and items by index.
        config: the frozen recipe as text, kept in the checkpoints.
        loggers: besides metrics.csv, which is always written and continued on resuming (Lightning's CSV logger starts anew).

    Raises:
        UserError: nothing to train or to train on, a run directory in use, a gradient that is not finite, a full disk, a
            checkpoint that does not fit, another process of the run that was lost.
    """
    if not method.trainable():
        raise UsageError(f"{title} has nothing to train; use it as it is with editkit edit")
    if len(dataset) == 0:
        raise UserError("the training set holds no images; give another data.root or data.train")
    began = time.monotonic()
    plan, remark = _computable(plan)
    with isolated(derive(seed, "build")):
        method.prepare_training()
    method.freeze_rest()
    method.train()
    stepper = method.stepper = Stepper(method, plan)
    session = Session(stepper, run, dataset=dataset, config=config, seed=seed, title=title, remark=remark)
    own = run.locked() if is_first_process() else contextlib.nullcontext()
    with own, announced(run), _quiet(), _losses_of_processes_in_a_line():
        trainer = _trainer(method, plan, run, session, loggers)
        trainer.fit(method, datamodule=_Feed(dataset, stepper, session.throughput, seed))
    method.provenance["training_seconds"] = run.seconds
    seconds, new_steps = time.monotonic() - began, stepper.steps - session.began_at
    return Outcome(stepper.steps, stepper.images, seconds, new_steps, session.resumed, session.stopped_by)


def _computable(plan: Plan) -> tuple[Plan, str]:
    """Return the plan in the numbers that its devices compute in, and a remark: 32 in place of a bf16 that they would imitate."""
    found = None if plan.accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    device = found or torch.device("cpu")
    if str(plan.precision) != "bf16" or computes_bf16(device):
        return plan, ""
    remark = f"{device.type} does not compute in bf16 and is slow to imitate it: taking trainer.precision=32"
    return replace(plan, precision=32), remark


def _trainer(method: Method, plan: Plan, run: RunDir, session: Session, loggers: Sequence[Logger]) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator=plan.accelerator,
        devices=plan.devices,
        num_nodes=plan.num_nodes,
        strategy=_strategy(method, plan),
        precision="bf16-mixed" if str(plan.precision) == "bf16" else "32-true",
        deterministic=plan.deterministic,
        default_root_dir=str(run.path),
        logger=[*(logger for logger in loggers if not isinstance(logger, (CsvLog, CSVLogger))), CsvLog(str(run.path))],
        callbacks=[session.throughput, session],
        plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [],  # the session polls signals itself
        max_epochs=-1,  # Order never ends; the session says when to stop
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # Order shares the batches out itself
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(method: Method, plan: Plan) -> Strategy | str:
    if plan.world == 1:
        return "auto"
    if plan.sharded:
        check_shardable(method)
        return Sharded(method)
    unused = method.unused_parameters or len(method.trained_parameters()) > 1
    return DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False)


class _Feed(lightning.LightningDataModule):
    """Makes the loader when Lightning asks for it, which is after the session has restored the position."""

    def __init__(self, dataset: Any, stepper: Stepper, throughput: Throughput, seed: int) -> None:
        super().__init__()
        self.dataset, self.stepper, self.throughput, self.seed = dataset, stepper, throughput, seed

    def train_dataloader(self) -> Timed:
        plan, trainer = self.stepper.plan, self.trainer
        assert trainer is not None
        order = Order(
            len(self.dataset),
            batch_size=plan.batch_size,
            seed=self.seed,
            start=self.stepper.images,
            rank=trainer.global_rank,
            world=trainer.world_size,
            blocks=getattr(self.dataset, "blocks", ()),
        )
        on_gpu = trainer.strategy.root_device.type == "cuda"
        return self.throughput.timed(batches(self.dataset, order, num_workers=plan.num_workers, pin_memory=on_gpu))


@contextlib.contextmanager
def _losses_of_processes_in_a_line() -> Iterator[None]:
    """Say in a line that another process of the run is gone, which this one learns where they meet."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        what = " ".join(str(error).split())[:150]
        raise UserError(f"another process of the run was lost ({what}); the same command continues from what is saved") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's remarks about choices made here on purpose off the terminal."""
    logs = [logging.getLogger("lightning.pytorch"), logging.getLogger("lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
