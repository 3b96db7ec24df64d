"""What can be asked of a training so that it fits a GPU, each found out by planning again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Saving:
    """Overrides of a training.

    Attributes:
        saved: bytes that they spare one device.
        total: bytes that are left.
        fits: whether that is enough.
    """

    overrides: tuple[str, ...]
    saved: int
    total: int
    fits: bool


def savings(total: int, memory: int, cfg: Any, count: Callable[[Sequence[str]], int | None]) -> list[Saving]:
    """Return what each option spares, and last several together, if it takes those to fit.

    Args:
        total: bytes of the training as it is.
        memory: bytes of the GPU.
        cfg: its configuration.
        count: plans again with overrides; None if there is no such training.
    """
    found: list[Saving] = []

    def tried(overrides: tuple[str, ...]) -> Saving | None:
        left = count(overrides)
        return Saving(overrides, total - left, left, left <= memory) if left is not None and left < total else None

    found = [saving for option in options(cfg) if (saving := tried(option)) is not None]
    if found and not any(saving.fits for saving in found):
        together: tuple[str, ...] = ()
        for saving in found:
            together += saving.overrides
            both = tried(together)
            if both is not None and both.fits:
                return [*found, both]
    return found


def options(cfg: Any) -> Iterator[tuple[str, ...]]:
    """Yield the overrides that a configuration has keys for, those that change the result least first."""
    trainer, method = cfg.trainer, cfg.method
    if trainer.ema is not None and trainer.ema_device != "cpu" and trainer.strategy == "ddp":
        yield ("trainer.ema_device=cpu",)
    if method.get("checkpointing") is False:
        yield ("method.checkpointing=true",)
    share = trainer.batch_size // (trainer.devices * trainer.num_nodes)
    if share > 1 and trainer.batch_size % 2 == 0:
        yield (f"trainer.batch_size={trainer.batch_size // 2}", f"trainer.accumulate={trainer.accumulate * 2}")
    if str(trainer.precision) == "32":
        yield ("trainer.precision=bf16",)
    if method.optimizer._target_ in ("torch.optim.AdamW", "torch.optim.Adam"):
        fused = ("~method.optimizer.fused",) if "fused" in method.optimizer else ()
        yield ("method.optimizer._target_=bitsandbytes.optim.AdamW8bit", *fused)
    if "lora" in method and method.lora is None:
        yield ("method.lora={rank: 16}",)
