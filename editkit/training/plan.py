"""How long and how a method is trained: the `trainer` keys of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from editkit.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """The `trainer` keys.

    A batch is `batch_size` images over all devices together, so that neither the length, the order of the images nor
    the learning-rate schedule depends on the number of devices.

    Attributes:
        steps: length in optimiser steps, all groups together; used when `images` is None.
        images: length in images seen.
        batch_size: images of a batch, shared out over all devices.
        accumulate: updates of a group whose mean gradient makes one optimiser step.
        lr_batch: images of an optimiser step for which the recipe's learning rates were chosen; None leaves the rates alone.
        lr_rule: how rates grow with the images of a step beyond that, "sqrt" or "linear".
        clip_norm: largest norm of a group's gradient.
        precision: 32 or "bf16" (autocast); `fit` takes the latter as 32 on devices that would imitate it.
        ema: below 1 a decay per step, from 1 upwards a half-life in images; None for no average.
        ema_device: where the average is kept, "cpu" or another device; None = beside the weights.
        accelerator: auto, cpu, gpu or mps.
        devices: per node.
        strategy: of several devices: ddp, each holds everything, or fsdp2, weights, gradients and optimiser state are shared out.
        save_every_s: seconds between checkpoints; 0 writes one after every batch.
        keep: checkpoints kept, at least two.
        log_every: optimiser steps between logged figures.
        sample_every: optimiser steps between sample grids; 0 for none.
        num_workers: processes per device that read data.
        deterministic: use deterministic kernels only, so that a resumed run is bit-identical on GPUs too (slower).

    Raises:
        UsageError: a value out of range, named as it is typed (trainer.batch_size=...).
    """

    steps: int | None = 1000
    images: int | None = None
    batch_size: int = 8
    accumulate: int = 1
    lr_batch: int | None = None
    lr_rule: str = "sqrt"
    clip_norm: float | None = None
    precision: int | str = 32
    ema: float | None = None
    ema_device: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "ddp"
    save_every_s: float = 300.0
    keep: int = 2
    log_every: int = 10
    sample_every: int = 0
    num_workers: int = 0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("accumulate", 1), ("devices", 1), ("num_nodes", 1), ("keep", 2), ("log_every", 1)):
            _at_least(key, getattr(self, key), least)
        for key in ("save_every_s", "sample_every", "num_workers"):
            _at_least(key, getattr(self, key), 0)
        _at_least("lr_batch", 1 if self.lr_batch is None else self.lr_batch, 1)
        if self.lr_rule not in ("sqrt", "linear"):
            raise UsageError(f"trainer.lr_rule={self.lr_rule} is unknown; give sqrt or linear")
        if self.images is None and self.steps is None:
            raise UsageError("training has no length; give trainer.steps=1000 or trainer.images=100000")
        _at_least("steps" if self.images is None else "images", self.length, 1)
        if str(self.precision) not in ("32", "bf16"):
            raise UsageError(f"trainer.precision={self.precision} is unknown; give 32 or bf16")
        if self.accelerator not in ("auto", "cpu", "gpu", "mps"):
            raise UsageError(f"trainer.accelerator={self.accelerator} is unknown; give auto, cpu, gpu or mps")
        if self.strategy not in ("ddp", "fsdp2"):
            raise UsageError(f"trainer.strategy={self.strategy} is unknown; give ddp or fsdp2")
        if self.sharded and self.ema_device is not None:
            raise UsageError("trainer.ema_device is for whole averages, trainer.strategy=fsdp2 shares them out; leave it out")
        if self.ema is not None and self.ema <= 0:
            raise UsageError(
                f"trainer.ema={self.ema} is out of range; give a decay such as 0.999, a half-life in images, or null"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UsageError(f"trainer.clip_norm={self.clip_norm} is out of range; give a positive norm, or null for none")
        if self.batch_size % self.world:
            raise UsageError(
                f"trainer.batch_size={self.batch_size} is shared by {self.world} devices; give a multiple of {self.world}"
            )

    @property
    def world(self) -> int:
        """Processes, over all nodes."""
        return self.devices * self.num_nodes

    @property
    def rate_factor(self) -> float:
        """What the recipe's learning rates are multiplied by.

        With the square root of the batch for Adam and its kin (Malladi et al. 2022), with the batch for SGD (Goyal et al. 2017).
        """
        ratio = 1.0 if self.lr_batch is None else self.batch_size * self.accumulate / self.lr_batch
        return ratio if self.lr_rule == "linear" else ratio**0.5

    @property
    def sharded(self) -> bool:
        """Whether weights are shared out over the processes."""
        return self.strategy == "fsdp2" and self.world > 1

    @property
    def length(self) -> int:
        """The length in `unit`."""
        return int(self.steps or 0) if self.images is None else self.images

    @property
    def unit(self) -> str:
        """What the length counts: "steps" or "images"."""
        return "steps" if self.images is None else "images"

    def shown(self, steps: int = 1) -> float:
        """Return how many images are shown if each batch takes so many optimiser steps."""
        return self.length * self.batch_size / steps if self.images is None else self.images

    def position(self, *, steps: int, images: int) -> int:
        """Return how much of `length` is done."""
        return steps if self.images is None else images


def _at_least(key: str, value: float, least: int) -> None:
    if value < least:
        raise UsageError(f"trainer.{key}={value} is too small; give {least} or more")
