"""What `editkit plan` does: builds a training without its weights and tells what it will take."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from editkit import recipe
from editkit.app.needs import Training
from editkit.app.options import PlanOptions
from editkit.app.plan_table import show
from editkit.app.savings import Saving, savings
from editkit.backbones.weightless import weightless
from editkit.engine.gpus import Gpu, gpu_named
from editkit.errors import UsageError, UserError
from editkit.training import estimate
from editkit.training.live import NotThere, ReadAsUnknown
from editkit.training.method import Method
from editkit.training.pipeline_export import PipelineMethod
from editkit.training.plan import Plan

EIGHT_BIT, PLAIN = "bitsandbytes.optim.AdamW8bit", "torch.optim.AdamW"


def plan(options: PlanOptions) -> int:
    """Print what a training takes, and return 0.

    Raises:
        UserError: anything the user can mend.
    """
    gpu = None if options.gpu is None else gpu_named(options.gpu)
    overrides = options.recipe_overrides()
    training = planned(overrides, options)
    if gpu is not None:
        gpu.peak(training.plan.precision)
    found: list[Saving] = []
    if gpu is not None and training.batch is not None and training.total > gpu.memory:
        found = savings(
            training.total, gpu.memory, configuration(overrides, options), lambda more: _total(overrides, more, options)
        )
    if options.json:
        json.dump(_plain(training, gpu, options, found), sys.stdout, indent=2)
        print()
    else:
        show(training, gpu, options, found)
    return 0


def configuration(overrides: Sequence[str], options: PlanOptions) -> Any:
    """Return the composed recipe."""
    return recipe.compose(overrides, prompts=options.texts(), conf_dirs=options.conf)


def planned(overrides: Sequence[str], options: PlanOptions) -> Training:
    """Build a training on the meta device and count it.

    Raises:
        UserError: a recipe that cannot be, or a method without a training.
    """
    cfg = configuration(overrides, options)
    trainer = Plan(**recipe.frozen(cfg.trainer))
    eight_bit = cfg.method.get("optimizer", {}).get("_target_") == EIGHT_BIT
    if eight_bit:
        cfg.method.optimizer._target_ = PLAIN  # only counted, so that it need not be installed
    with weightless(), ReadAsUnknown():
        method = ready(cfg)
        return replace(counted(method, trainer, eight_bit), cache=_cache(cfg, estimate.batch_of(method, 1)))


def ready(cfg: Any) -> Method:
    """Return the method of a recipe, ready for training, on the meta device and for images of the data's size."""
    name = cfg.get("recipe") or "this method"
    method: Method = recipe.build(cfg, "method")
    if not method.trainable():
        raise UsageError(f"{name} has nothing to train: nothing to plan")
    try:
        method.prepare_training()
    except NotThere as error:
        raise UserError(f"{name} cannot be planned: {error}") from error
    method.freeze_rest()
    method.train()
    method.to("meta")
    side, backbone = _side(cfg.get("data")), getattr(method, "backbone", None)
    downscale = getattr(backbone, "downscale", None)
    if side and downscale:  # latents of pictures of another size than the backbone's own
        backbone.unet.register_to_config(sample_size=side // downscale)
    return method


def counted(method: Method, trainer: Plan, eight_bit: bool) -> Training:
    """Count a method that is ready on the meta device."""
    weights, found = estimate.trained_parameters(method), estimate.parts(method)
    trained = sum(weight.nbytes for weight in weights)
    assert method.optimizer is not None, "a recipe that trains has an optimizer"
    state = estimate.optimizer(method.optimizer, weights, eight_bit=eight_bit)
    batch, unknown = None, ""
    try:
        batch = estimate.batch(method, trainer)
    except (NotThere, NotImplementedError) as error:  # the latter is torch's for an operation that needs values
        unknown = f"a batch cannot be counted without weights and data: {str(error).splitlines()[0]}"
    memory = estimate.memory(found, batch, state, trainer, trained)
    checkpoint = trained + state.state + (trained if trainer.ema is not None else 0)
    return Training(trainer, found, memory, batch, unknown, checkpoint, _export(method))


def _export(method: Method) -> int | None:
    """Return the bytes of the files that a run exports, None for a method that writes them in its own way."""
    own = sum(tensor.nbytes for one in method.artefacts() for tensor in one.tensors.values())
    if isinstance(method, PipelineMethod):
        own += sum(weight.numel() * 2 for weight in method.parameters())
    return own or None


def _cache(cfg: Any, item: Mapping[str, Any]) -> tuple[int, int | None] | None:
    """Return what `editkit.data.encoded` keeps of an item, in half precision, and how many there are."""
    if "encoder" not in (cfg.get("data") or {}):
        return None
    each = sum(value.numel() * 2 for name, value in item.items() if name.endswith("_posterior"))
    try:
        data = recipe.build(cfg, "data")
        inner = data.inner.dataset("train")
        return each + sum(inner[0][name].numel() * 2 for name in data.kept), len(inner)
    except UserError:  # the data are not here
        return each, None


def _total(overrides: Sequence[str], more: Sequence[str], options: PlanOptions) -> int | None:
    """Return the bytes with further overrides, None if there is no such training."""
    changed = {text.partition("=")[0] for text in more}
    kept = [text for text in overrides if text.partition("=")[0] not in changed]
    try:
        return planned([*kept, *more], options).total
    except UserError:
        return None


def _side(data: Any) -> int | None:
    """Return the size of the images of a data section or of the data inside it."""
    while data is not None:
        if data.get("size") is not None:
            return int(data["size"])
        data = data.get("inner")
    return None


def _plain(training: Training, gpu: Gpu | None, options: PlanOptions, found: Sequence[Saving]) -> dict[str, Any]:
    hours = training.hours(gpu, options.utilisation) if gpu else None
    return {
        "parts": {name: asdict(part) for name, part in training.parts.items()},
        "memory": training.memory,
        "total": training.total,
        "batch": asdict(training.batch) if training.batch else None,
        "unknown": training.unknown,
        "trainer": asdict(training.plan),
        "batches": training.batches,
        "flops": training.flops,
        "disk": {
            "checkpoint": training.checkpoint,
            "keep": training.plan.keep,
            "export": training.export,
            "cache": training.cache,
        },
        "gpu": asdict(gpu) | {"fits": training.total <= gpu.memory} if gpu else None,
        "utilisation": options.utilisation,
        "hours": hours,
        "gpu_hours": None if hours is None else hours * training.plan.world,
        "cost": None if hours is None or options.price is None else hours * training.plan.world * options.price,
        "savings": [asdict(one) for one in found],
    }
