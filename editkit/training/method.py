"""Method: what a paper adds, as one LightningModule that says what is trained and by which losses.

A new method subclasses `Method`, takes its parts as keyword arguments (never the whole config) and writes:

    class Shift(Method):
        def __init__(self, *, backbone, width=96, optimizer=None, scheduler=None):
            super().__init__(optimizer=optimizer, scheduler=scheduler)
            self.backbone = backbone                     # frozen: not in trainable()
            self.shift = DeltaBlock(backbone.bottleneck_shape, width)

        def trainable(self):  return {"shift": self.shift.parameters()}
        def loss(self, batch):  return {"clip": ..., "l1": ...}          # or `updates` for several steps a batch
        def dummy_batch(self):  return {"image": ..., "key": [...]}
        def editor(self, artefacts):  return ShiftEditor(self.backbone, ...)

Everything else (accumulation, clipping, schedulers, EMA, precision, checkpoints, counting) is the base's and the loop's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor, nn

from editkit.backbones.base import Backbone
from editkit.training.artefact import Artefact
from editkit.training.editor import Editor
from editkit.training.shards import like
from editkit.training.update import Update

if TYPE_CHECKING:
    from editkit.training.stepper import Stepper

__all__ = ["Artefact", "Editor", "Method", "Update"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


class Method(lightning.LightningModule):
    """Base of all methods; manual optimisation, driven by `updates`.

    Args:
        optimizer: makes the optimiser of one parameter group (in a recipe: `_partial_: true` of a torch.optim class).
        scheduler: makes its learning-rate schedule, advanced once per optimiser step; None keeps the rate.

    Attributes:
        unused_parameters: True when an update may leave some of its group's parameters without a gradient; several
            processes then look for those before each exchange, which costs a little.
        provenance: what the application knows about this run (recipe, seed, prompts); it goes into every card.
    """

    unused_parameters: bool = False

    def __init__(self, *, optimizer: OptimizerFactory | None = None, scheduler: SchedulerFactory | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.provenance: dict[str, Any] = {}
        self.stepper: Stepper | None = None

    # What a method writes.

    def trainable(self) -> dict[str, Iterable[nn.Parameter]]:
        """Return what is trained, by group, each group with its own optimiser; all else is frozen and in no checkpoint."""
        raise NotImplementedError(f"{type(self).__name__}.trainable")

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the named losses of a batch, each a scalar or one value per sample."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def updates(self, batch: Mapping[str, Any]) -> Iterator[Update]:
        """Yield the optimiser steps that a batch asks for; after each one the generator resumes with stepped weights."""
        yield Update(next(iter(self.trainable())), self.loss(batch))

    def dummy_batch(self) -> dict[str, Any]:
        """Return the smallest batch that `updates` accepts, on the method's device (tests, `doctor`)."""
        raise NotImplementedError(f"{type(self).__name__}.dummy_batch")

    def editor(self, artefacts: Sequence[Artefact]) -> Editor | None:
        """Return what edits with these trained parts (none: a method that needs no training); None if it cannot edit."""
        return None

    # What a method may add.

    def prepare_training(self) -> None:
        """Build what only training needs (loss networks). Called once, before anything is frozen or moved to a device."""

    def precompute(self, dataset: Any) -> None:
        """Compute once what does not change over training (inversions, features), from the training set, on the device."""

    def sources(self, batch: Mapping[str, Any]) -> Any:
        """Return what `precompute` keeps of a batch's images, or would keep; None where it computes nothing."""
        return None

    def shardable(self) -> Sequence[nn.Module]:
        """Return the networks that may be shared out over processes (`trainer.strategy=fsdp2`): only those called as a whole."""
        return ()

    def sample_grid(self) -> Tensor | None:
        """Return images in [-1, 1] that show the progress, (N, 3, H, W) or laid out (rows, columns, 3, H, W)."""
        return None

    @property
    def tasks(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        """Return the steps that are not training: name -> function of the data object that returns figures to print."""
        return {}

    @property
    def needs_trained(self) -> bool:
        """Return whether an edit needs trained parts (default: if anything is trained at all)."""
        return any(len(list(parameters)) for parameters in self.trainable().values())

    def artefacts(self) -> list[Artefact]:
        """Return the trained parts to export (default: all of them in one, named after the recipe)."""
        name = str(self.provenance.get("recipe") or type(self).__name__.lower())
        return [Artefact(name, self.trained_state(), card=self.card())]

    def card(self) -> dict[str, Any]:
        """Return what an exported file says about itself."""
        card: dict[str, Any] = {**self.provenance, "method": f"{type(self).__module__}.{type(self).__qualname__}"}
        backbone = getattr(self, "backbone", None)
        if isinstance(backbone, Backbone):
            card |= {"backbone_digest": backbone.digest(), "bottleneck_shape": list(backbone.bottleneck_shape)}
        if self.stepper is not None:
            card |= {"steps": self.stepper.steps, "images": self.stepper.images}
        return card

    def export(self, folder: str | Path) -> list[Path]:
        """Write the trained parts (their EMA, if there is one) as safetensors with their cards; return the paths."""
        with self.averaged_weights():
            return [artefact.save(Path(folder) / f"{slug(artefact.name)}.safetensors") for artefact in self.artefacts()]

    def exported_bytes(self) -> int:
        """Return about how many bytes `export` writes."""
        return sum(tensor.nbytes for tensor in self.trained_state().values())

    # What the base does with it.

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """Return {group: {parameter name: parameter}}.

        Raises:
            ValueError: a trainable parameter that is no part of the module, or in two groups.
        """
        trainable = self.trainable()  # first of all: a method may make there what it trains
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for group, parameters in trainable.items():
            groups[group] = {}
            for parameter in parameters:
                name = names.pop(id(parameter), None)
                if name is None:
                    shape = tuple(parameter.shape)
                    raise ValueError(f"group {group!r} holds a {shape} parameter that is in another group or not in the module")
                groups[group][name] = parameter
        return groups

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained parameters, and the buffers of the layers that hold them, by name."""
        parameters = {name: p for group in self.trained_parameters().values() for name, p in group.items()}
        layers = {name.rpartition(".")[0] for name in parameters}
        state = self.state_dict()
        buffers = {name for name in state if name.rpartition(".")[0] in layers} - {name for name, _ in self.named_parameters()}
        return {name: tensor.detach() for name, tensor in state.items() if name in parameters or name in buffers}

    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors of `trained_state` into the module.

        Raises:
            ValueError: names or shapes that differ from the module's.
        """
        own = self.trained_state()
        if own.keys() != tensors.keys():
            odd = sorted(own.keys() ^ tensors.keys())
            raise ValueError(f"the trained parts differ: {len(odd)} names are on one side only, such as {odd[0]!r}")
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != tensors[name].shape:
                    raise ValueError(
                        f"{name} has shape {tuple(tensors[name].shape)} in the file and {tuple(tensor.shape)} in the model"
                    )
                tensor.copy_(like(tensors[name], tensor))

    def freeze_rest(self) -> None:
        """Let only `trainable()` receive gradients."""
        self.requires_grad_(False)
        for group in self.trained_parameters().values():
            for parameter in group.values():
                parameter.requires_grad_(True)

    def train(self, mode: bool = True) -> Method:
        """Set the training mode; parts without a trained parameter stay in evaluation mode (no dropout in a frozen net)."""
        super().train(mode)
        for part in self.children():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the trained parts hold their moving average; without an EMA it changes nothing."""
        return self.stepper.averaged_weights() if self.stepper else contextlib.nullcontext()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Run the batch's updates (Lightning's hook)."""
        assert self.stepper is not None, "the loop sets the stepper before the first batch"
        self.stepper.run(batch)

    def transfer_batch_to_device(self, batch: Mapping[str, Any], device: torch.device, dataloader_idx: int) -> dict[str, Any]:
        """Move tensors, alone or in lists, and leave everything else as the data set made it (Lightning's hook)."""
        return {name: _moved(value, device) for name, value in batch.items()}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimisers, one per group (Lightning's hook)."""
        assert self.stepper is not None, "the loop sets the stepper before it starts"
        return self.stepper.make_optimizers()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return type(value)(_moved(item, device) for item in value) if isinstance(value, (list, tuple)) else value


def slug(text: str) -> str:
    """Return text as a file name: "An old face!" -> "an-old-face"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"
