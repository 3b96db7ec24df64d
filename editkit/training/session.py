"""Session: what happens between the batches of a run (restore, log, sample, save, stop)."""

from __future__ import annotations

import contextlib
import functools
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from editkit.errors import UserError
from editkit.training import checkpoint, fitting, not_finite
from editkit.training.grid import save_grid
from editkit.training.method import Method
from editkit.training.metrics_csv import CsvLog
from editkit.training.plan import Plan
from editkit.training.progress import Display
from editkit.training.randomness import derive, isolated, rng_state, seed_all, set_rng_state
from editkit.training.rundir import RunDir
from editkit.training.sharding import Sharded
from editkit.training.shards import whole
from editkit.training.share import gathered
from editkit.training.signals import StopFlag
from editkit.training.space import bytes_of, dispensable, gib, lacking
from editkit.training.stepper import Stepper
from editkit.training.throughput import Throughput


class Session(Callback):
    """One run's housekeeping, as a callback of Lightning's Trainer.

    Args:
        config: the frozen recipe as text, kept in every checkpoint.
        dataset: the training set, for `Method.precompute`.
        remark: what to say when training starts; "" for nothing.

    Attributes:
        resumed: the checkpoint this process continued from.
        stopped_by: name of the signal that ended training early.
        throughput: a callback of its own, to stand before this one in the Trainer's.
    """

    def __init__(
        self, stepper: Stepper, run: RunDir, *, dataset: Any, config: str, seed: int, title: str, remark: str = ""
    ) -> None:
        self.stepper, self.run, self.dataset, self.config, self.seed, self.title = stepper, run, dataset, config, seed, title
        self.remark = remark
        self.plan: Plan = stepper.plan
        self.method: Method = stepper.method
        self.resumed: Path | None = None
        self.stopped_by: str | None = None
        self.flag = StopFlag()
        self.display: Display | None = None
        self.began_at = self.seen = 0  # steps at the start of this process, and at the last boundary
        self.saved_at = time.monotonic()
        self.throughput = Throughput(self.plan)
        self.earlier, self.started = run.seconds, time.monotonic()

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore the newest checkpoint, or seed; then let the method compute what stays the same."""
        self.stepper.backward = pl_module.manual_backward
        self.stepper.report = functools.partial(not_finite.report, self.run)
        if trainer.world_size > 1:
            self.stepper.unsynced = trainer.strategy.block_backward_sync  # type: ignore[attr-defined]
        newest = checkpoint.newest(self.run.checkpoints) if trainer.is_global_zero else None
        self.resumed = trainer.strategy.broadcast(newest)
        with isolated(derive(self.seed, "precompute")):
            self._prepare_data(trainer)
            self.method.precompute(self.dataset)
        if self.resumed is None:
            seed_all(derive(self.seed, "train", trainer.global_rank))
        else:
            self._restore(trainer, self.resumed)
        self.began_at = self.seen = self.stepper.steps
        for logger in trainer.loggers:
            if isinstance(logger, CsvLog):
                self._rewind(logger)
        trainer.should_stop = self.stepper.done

    def _prepare_data(self, trainer: lightning.Trainer) -> None:
        """Let a data set that computes something once do so, on the device of the training and in all processes at once."""
        prepare = getattr(self.dataset, "prepare", None)
        if prepare is None:
            return
        if trainer.is_global_zero:
            with contextlib.closing(Display("preparing the data", total=len(self.dataset), unit="images")) as display:
                prepare(self.method.device, lambda done: display.show(done, {}))
        else:
            prepare(self.method.device)
        trainer.strategy.barrier()

    def _rewind(self, logger: CsvLog) -> None:
        try:
            logger.rewind(self.stepper.steps)
        except OSError as error:
            raise UserError(f"cannot write {logger.path} ({error.strerror}); free some space and try again") from error

    def _restore(self, trainer: lightning.Trainer, path: Path) -> None:
        snapshot = checkpoint.load(path)
        before, images = snapshot.state["config"], len(self.dataset)
        fitting.check(path, before, self.config, (snapshot.state.get("dataset", images), images))
        try:
            self.method.load_trained(snapshot.weights)
            self.stepper.load_state_dict(snapshot.state["stepper"], rates=not fitting.other_rates(before, self.config))
        except (KeyError, ValueError) as error:
            raise fitting.DoesNotFit(f"{path} does not fit this configuration ({error}): {fitting.WAYS}") from error
        processes = snapshot.state["processes"]
        if len(processes) == trainer.world_size:
            own = processes[trainer.global_rank]
            set_rng_state(own["random"])
            self.stepper.meter.load_state_dict(own["meter"])
        else:
            saved = f"{path} was saved by {len(processes)} processes, not {trainer.world_size}"
            warnings.warn(f"{saved}: the noise from here on is another", stacklevel=2)
            seed_all(derive(self.seed, "train", trainer.global_rank, self.stepper.steps))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over the signals from Lightning, whose own handlers act in the middle of a batch."""
        self.flag.install()
        self.saved_at = time.monotonic()
        if trainer.is_global_zero:
            position = self.plan.position(steps=self.stepper.steps, images=self.stepper.images)
            self.display = Display(self.title, total=self.plan.length, unit=self.plan.unit, start=position)
            if self.remark:
                self.display.say(self.remark)
            if self.resumed is not None:
                self.display.say(f"continuing from {self.resumed}")

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any) -> None:
        """Log, sample, save and stop, each where it is due."""
        if not self.stepper.settled:
            return
        figures = self._log(trainer) if self._crossed(self.plan.log_every) or self.stepper.done else None
        if self.display is not None:
            self.display.show(self.plan.position(steps=self.stepper.steps, images=self.stepper.images), figures)
        if self._crossed(self.plan.sample_every):
            self._sample(trainer)
        if self.seen == self.began_at and trainer.is_global_zero:
            self._check_space()
        stop, due = self._poll(trainer)
        self.seen = self.stepper.steps
        trainer.should_stop = stop or self.stepper.done
        if trainer.should_stop or due:
            self._save(trainer, last=trainer.should_stop)

    def _check_space(self) -> None:
        """Warn, once all that a checkpoint holds is there, if the run's checkpoints and its export will not fit on the disk."""
        one = bytes_of([self.method.trained_state(), self.stepper.state_dict()])
        count = max(1, self.plan.keep + 1 - len(checkpoint.saved(self.run.checkpoints)))  # a new one is written before one goes
        what = f"{count} more checkpoint{'s' if count > 1 else ''} of {gib(one)} and the export"
        problem = lacking(self.run.path, count * one + self.method.exported_bytes(), what)
        if problem:
            warnings.warn(f"{problem}; free some space while it trains", stacklevel=2)

    def _crossed(self, every: int) -> bool:
        return every > 0 and self.stepper.steps // every > self.seen // every

    def _poll(self, trainer: lightning.Trainer) -> tuple[bool, bool]:
        """Return (a signal came, a checkpoint is due), agreed on by all processes.

        Several processes agree only where figures are logged, so that the batches between run without waiting.
        """
        own = (self.flag.caught is not None, time.monotonic() - self.saved_at >= self.plan.save_every_s)
        if trainer.world_size > 1:
            if not (self._crossed(self.plan.log_every) or self.stepper.done):
                return False, False
            agreed = trainer.strategy.reduce(torch.tensor(own, dtype=torch.float32, device=self.method.device), reduce_op="max")
            own = (bool(agreed[0]), bool(agreed[1]))
        if own[0]:
            self.stopped_by = self.flag.caught.name if self.flag.caught else "a signal to another process"
        return own

    def _log(self, trainer: lightning.Trainer) -> dict[str, float]:
        def over_devices(means: Tensor) -> Tensor:
            return trainer.strategy.reduce(means.float().to(self.method.device), reduce_op="mean").cpu()

        figures = self.stepper.meter.take(over_devices if trainer.world_size > 1 else lambda means: means)
        figures |= {"images": float(self.stepper.images)} | self.throughput.take()
        for logger in trainer.loggers:
            with dispensable(getattr(logger, "path", self.run.path)):
                logger.log_metrics(figures, step=self.stepper.steps)
        return figures

    def _sample(self, trainer: lightning.Trainer) -> None:
        if not (trainer.is_global_zero or self.plan.sharded):
            return
        self.method.eval()
        with isolated(derive(self.seed, "samples")), self.method.averaged_weights(), torch.no_grad():
            images = self.method.sample_grid()
        self.method.train()
        if images is not None and trainer.is_global_zero:
            path = self.run.samples / f"step-{self.stepper.steps:08d}.png"
            with dispensable(path):
                save_grid(images, path)

    def _save(self, trainer: lightning.Trainer, *, last: bool) -> None:
        own = {"random": rng_state(), "meter": self.stepper.meter.state_dict()}
        processes = gathered(own)
        weights, stepper = whole(self.method.trained_state()), whole(self.stepper.state_dict())
        if trainer.is_global_zero:
            about = {"config": self.config, "dataset": len(self.dataset)}
            state = {**about, "stepper": stepper, "processes": processes}
            try:
                checkpoint.save(self.run.checkpoints, self.stepper.steps, weights, state, keep=self.plan.keep)
                with contextlib.suppress(OSError):  # a full disk has been told of where it matters
                    self.run.note_seconds(self.earlier + time.monotonic() - self.started)
            except checkpoint.CheckpointNotWritten as error:
                if last:
                    raise
                warnings.warn(str(error), stacklevel=2)
        self.saved_at = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Give the method its whole weights, then the signals and the terminal back."""
        if isinstance(trainer.strategy, Sharded):  # before the signals: Lightning's own handlers would break into the exchange
            trainer.strategy.gather()
        self._give_back()

    def _give_back(self) -> None:
        self.flag.remove()  # before Lightning puts back those that it found itself
        if self.display is not None:
            self.display.close()

    def on_exception(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException) -> None:
        """Give signals and terminal back after an error."""
        self._give_back()
