"""A plan for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from editkit.app.needs import Training
from editkit.app.options import PlanOptions
from editkit.app.savings import Saving
from editkit.engine.gpus import Gpu
from editkit.training.space import gib


def show(training: Training, gpu: Gpu | None, options: PlanOptions, found: Sequence[Saving]) -> None:
    """Print what a training takes."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_parts(training))
    console.print(_memory(training))
    console.print(_fit(training, gpu))
    for one in found:
        told = " ".join(f"'{text}'" if " " in text or "~" in text else text for text in one.overrides)
        verdict = "fits" if one.fits else "does not fit yet"
        console.print(f"  {told}: spares {gib(one.saved)}, {gib(one.total)} in all, {verdict}", markup=False)
    console.print(_length(training))
    if gpu is not None:
        console.print(_time(training, gpu, options))
    console.print(_disk(training))
    if training.unknown:
        console.print(training.unknown, markup=False)


def count(number: float) -> str:
    """Return a number with its thousand, million... as a letter."""
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f} {letter}"
    return f"{number:.0f} "


def duration(hours: float) -> str:
    """Return hours in a unit that suits them."""
    for unit, name in ((1.0, "hours"), (1 / 60, "minutes")):
        if hours >= unit:
            return f"{hours / unit:,.1f} {name}" if hours < 10 * unit else f"{hours / unit:,.0f} {name}"
    return f"{hours * 3600:,.0f} seconds" if hours > 1 / 3600 else "under a second"


def _parts(training: Training) -> Table:
    table = Table("part", box=SIMPLE_HEAD, show_edge=False)
    for heading in ("parameters", "trained"):
        table.add_column(heading, justify="right")
    for name, part in training.parts.items():
        table.add_row(name, f"{part.parameters:,}", f"{part.trained:,}" if part.trained else "-")
    everything = training.parts.values()
    table.add_row("all", f"{sum(p.parameters for p in everything):,}", f"{sum(p.trained for p in everything):,}", style="bold")
    return table


def _memory(training: Training) -> Table:
    share = training.plan.batch_size // training.plan.world
    table = Table("memory of one device", box=SIMPLE_HEAD, show_edge=False)
    table.add_column("", justify="right")
    for name, size in training.memory.items():
        table.add_row(f"{name} of {share}" if name == "a batch" else name, gib(size))
    table.add_row("all (an estimate)" if training.batch else "all that can be told", gib(training.total), style="bold")
    return table


def _fit(training: Training, gpu: Gpu | None) -> str:
    if gpu is None:
        return "does it fit, and how long does it take: add --gpu a100-80 or another"
    if training.batch is None:
        return f"whether it fits {gpu.name} ({gib(gpu.memory)}) cannot be told"
    return f"{'fits' if training.total <= gpu.memory else 'does not fit'} {gpu.name} ({gib(gpu.memory)})"


def _length(training: Training) -> str:
    plan, batch = training.plan, training.batch
    if batch is None or training.batches is None:
        return f"length: {plan.length:,} {plan.unit} in batches of {plan.batch_size}"
    steps = training.batches * batch.updates / plan.accumulate
    images = training.batches * plan.batch_size
    flops = batch.flops * plan.world * plan.accumulate / batch.updates
    text = f"length: {steps:,.0f} steps, {images:,.0f} images; {count(flops)}FLOP a step, {count(training.flops or 0)}FLOP in all"
    if plan.rate_factor != 1:
        text += f"\n  learning rates are the recipe's x {plan.rate_factor:.3g} (trainer.lr_batch={plan.lr_batch})"
    if not batch.sources:
        return text
    each = count(batch.sources * plan.world / plan.batch_size)
    return f"{text}\n  {each}FLOP of an image prepare it and are counted each time; images that return are prepared once"


def _time(training: Training, gpu: Gpu, options: PlanOptions) -> str:
    hours = training.hours(gpu, options.utilisation)
    if hours is None:
        return "time: cannot be told"
    whole = hours * training.plan.world
    text = f"time: {duration(hours)} on {training.plan.world} {gpu.name} at {options.utilisation:.0%} of the peak (assumed)"
    text += f", {whole:,.1f} GPU-hours" if whole >= 1 else ""
    return text if options.price is None else f"{text}, cost {whole * options.price:,.2f}"


def _disk(training: Training) -> str:
    plan = training.plan
    text = f"disk: {plan.keep} checkpoints of {gib(training.checkpoint)}"
    if training.export is not None:
        text += f", export {gib(training.export)}"
    if training.cache is None:
        return text
    each, items = training.cache
    return f"{text}, {gib(each * items)} of encoded data" if items else f"{text}, {each / 1000:.0f} kB an item of encoded data"
