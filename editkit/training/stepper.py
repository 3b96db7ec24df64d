"""Stepper: turns a method's updates into optimiser steps."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from editkit.errors import UserError
from editkit.training.ema import Ema
from editkit.training.not_finite import Seen
from editkit.training.plan import Plan
from editkit.training.shards import optimizer_like, whole
from editkit.training.update import Update


class NotFinite(UserError):
    """The gradient became NaN or infinite; raised before the weights are touched."""


class Trainee(Protocol):
    """What a stepper uses of a method."""

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]: ...

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]: ...


class Stepper:
    """Accumulates, clips, checks, steps, schedules, averages and counts; it works with and without a Trainer.

    Attributes:
        steps: optimiser steps taken, all groups together.
        images: images seen, over all devices.
        backward: differentiates a loss; the loop puts Lightning's here.
        report: keeps what is known of batches whose gradient is not finite, and returns the file; the loop puts one here.
        unsynced: context in which a backward pass leaves the gradients of the other devices out (accumulation).
    """

    def __init__(self, method: Trainee, plan: Plan) -> None:
        self.method = method
        self.plan = plan
        self.parameters: dict[str, dict[str, nn.Parameter]] = method.trained_parameters()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.schedulers: dict[str, torch.optim.lr_scheduler.LRScheduler] = {}
        self.ema: Ema | None = None
        self.meter = Meter()
        self.steps = 0
        self.images = 0
        self.waiting = dict.fromkeys(self.parameters, 0)
        self.backward: Callable[[Tensor], None] = torch.Tensor.backward
        self.report: Callable[[int, str, Sequence[Seen]], Path | None] = lambda step, group, batches: None
        self.seen: dict[str, list[Seen]] = {group: [] for group in self.parameters}  # batches since a group's last step
        self.unsynced: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Create optimisers, schedules and the average for the parameters where they are now; return the optimisers."""
        self.parameters = self.method.trained_parameters()
        if self.method.optimizer is None:
            raise ValueError(f"{type(self.method).__name__} has no optimizer; set method.optimizer in its recipe")
        self.optimizers = {group: self.method.optimizer(list(named.values())) for group, named in self.parameters.items()}
        if self.method.scheduler is not None:
            try:
                self.schedulers = {group: self.method.scheduler(optimizer) for group, optimizer in self.optimizers.items()}
            except ZeroDivisionError as error:  # what a warm-up of torch's OneCycleLR comes to that is shorter than two steps
                raise UserError(
                    f"the schedule of the learning rate does not fit into {self.plan.length} {self.plan.unit}: train longer "
                    "(trainer.steps), or warm up for a larger share (method.scheduler.pct_start=0.2)"
                ) from error
        for group, optimizer in self.optimizers.items():
            _scale_rates(optimizer, self.schedulers.get(group), self.plan.rate_factor)
        if self.plan.ema is not None:
            self.ema = Ema(self.parameters, self.plan.ema, self.plan.ema_device)
        return list(self.optimizers.values())

    @property
    def settled(self) -> bool:
        """True when no gradient waits for its optimiser step: the only moments at which a state can be saved."""
        return not any(self.waiting.values())

    @property
    def done(self) -> bool:
        """True when the planned length is reached."""
        return self.settled and self.plan.position(steps=self.steps, images=self.images) >= self.plan.length

    def run(self, batch: Mapping[str, Any]) -> None:
        """Take the optimiser steps of one batch.

        Raises:
            NotFinite: before the update that a NaN or infinite gradient would have made.
        """
        self.images += self.plan.batch_size
        for update in self.method.updates(batch):
            self._apply(update, batch)

    def _apply(self, update: Update, batch: Mapping[str, Any]) -> None:
        group = update.group
        self.waiting[group] = (self.waiting[group] + 1) % self.plan.accumulate
        total = update.total()
        with contextlib.nullcontext() if self.waiting[group] == 0 else self.unsynced():
            self.backward(total / self.plan.accumulate)
        self.meter.add({"loss": total, **{f"loss/{name}": value for name, value in update.losses.items()}, **update.report})
        losses = {name: value.detach().float() for name, value in update.losses.items()}
        self.seen[group].append(([str(key) for key in batch.get("key", ())], losses))
        if self.waiting[group] == 0:
            self._step(group)
            self.seen[group].clear()

    def _step(self, group: str) -> None:
        parameters = list(self.parameters[group].values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            raise ValueError(f"no gradient reached the group {group!r}")
        norm = total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise NotFinite(self._explain(group))
        if self.plan.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.plan.clip_norm, norm)
        optimizer = self.optimizers[group]
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()  # it holds the weights as they were, and a batch's next update would still see those
        if group in self.schedulers:
            self._schedule(group)
        self.steps += 1
        if self.ema is not None:
            self.ema.update(group, images=self.images)
        self.meter.add({f"grad_norm/{group}": norm, f"lr/{group}": float(rate)})

    def _schedule(self, group: str) -> None:
        try:
            self.schedulers[group].step()
        except ValueError as error:  # of those that know their length
            raise UserError(
                f"the schedule of {group!r} ends before the training ({error}); "
                f"give it more steps (keys of method.scheduler, with --accept-changes), or trainer.steps fewer"
            ) from error

    def _explain(self, group: str) -> str:
        batches = self.seen[group]
        means = {name: sum(losses[name].mean().item() for _, losses in batches) / len(batches) for name in batches[0][1]}
        values = ", ".join(f"{name}={mean:.4g}" for name, mean in means.items())
        keys = [key for own, _ in batches for key in own]
        of = f" Images of the batch: {', '.join(keys[:4])}{'...' if len(keys) > 4 else ''}." if keys else ""
        file = self.report(self.steps + 1, group, batches)
        listed = f" All of them, and their losses, are in {file}." if file else ""
        return (
            f"the gradient of {group!r} is not finite at step {self.steps + 1} (losses {values}); nothing was updated."
            f"{of}{listed} Lower method.optimizer.lr, or set trainer.clip_norm=1, and continue with --accept-changes"
        )

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the parameters hold their moving average; without one it changes nothing."""
        return self.ema.applied() if self.ema is not None else contextlib.nullcontext()

    def rebind(self) -> None:
        """Take up the method's parameters again, after whole ones have replaced those that were shared out."""
        self.parameters = self.method.trained_parameters()
        if self.ema is not None:
            self.ema.parameters, self.ema.averages = self.parameters, whole(self.ema.averages)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights: counts, optimisers, schedules, average; tensors may be shared out.

        Raises:
            RuntimeError: gradients are waiting; ask `settled` first.
        """
        if not self.settled:
            raise RuntimeError("gradients are waiting for their optimiser step; a state saved now would lose them")
        return {
            "steps": self.steps,
            "images": self.images,
            "optimizers": {group: optimizer.state_dict() for group, optimizer in self.optimizers.items()},
            "schedulers": {group: scheduler.state_dict() for group, scheduler in self.schedulers.items()},
            "ema": self.ema.state_dict() if self.ema is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, rates: bool = True) -> None:
        """Continue from a `state_dict`. An average that was not kept before starts from the loaded weights.

        Args:
            rates: take the optimisers' settings and the schedules from the state too. Otherwise they stay as they were made,
                the schedules brought to where those of the state were.

        Raises:
            ValueError: a schedule that is shorter than what was trained.
        """
        self.steps, self.images = state["steps"], state["images"]
        for group, optimizer in self.optimizers.items():
            own = [{name: value for name, value in one.items() if name != "params"} for one in optimizer.param_groups]
            optimizer.load_state_dict(optimizer_like(state["optimizers"][group], optimizer))
            for one, settings in zip(optimizer.param_groups, own, strict=True):
                one.update({} if rates else settings)
        for group, scheduler in self.schedulers.items():
            if rates:
                scheduler.load_state_dict(state["schedulers"][group])
            else:
                before = state["schedulers"].get(group, {"last_epoch": self.steps // len(self.optimizers)})
                _advance(scheduler, before["last_epoch"])
        if self.plan.ema is not None:
            self.ema = Ema(self.parameters, self.plan.ema, self.plan.ema_device)
            if state["ema"] is not None:
                self.ema.load_state_dict(state["ema"])


def _scale_rates(optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler | None, factor: float) -> None:
    """Multiply an optimiser's rates, and those between which its schedule moves; what a schedule has as a floor stays."""
    for one in optimizer.param_groups:
        one.update({name: factor * one[name] for name in ("lr", "initial_lr", "max_lr", "min_lr") if name in one})
    if scheduler is not None and hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [factor * rate for rate in scheduler.base_lrs]


def _advance(scheduler: torch.optim.lr_scheduler.LRScheduler, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # the optimiser made its own before
        for _ in range(steps):
            scheduler.step()


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of gradients, of all their shards where they are shared out."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Meter:
    """Means of named values since they were last read; they stay on their device until then."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Add one observation of each value: a scalar, or one value per sample."""
        for name, value in values.items():
            mean = value.detach().float().mean() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + mean
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, reduce: Callable[[Tensor], Tensor] = lambda means: means) -> dict[str, float]:
        """Return the means by name and start anew; `reduce` averages the vector of means over the devices."""
        names = sorted(self.sums)
        means = reduce(torch.tensor([float(self.sums[name]) / self.counts[name] for name in names], dtype=torch.float64))
        self.sums, self.counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what was added since the last reading, so that a resumed run logs the same means."""
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
