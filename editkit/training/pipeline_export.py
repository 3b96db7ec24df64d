"""Methods that tune parts of a pipeline: what they export, beside their own file, is a folder that diffusers opens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from editkit.backbones.latent import LatentBackbone
from editkit.engine.atomic import usual_mode
from editkit.networks.lora import Lora, add_lora, has_lora, lora_parameters, merged, save_lora
from editkit.training.artefact import Artefact
from editkit.training.method import Method, OptimizerFactory, SchedulerFactory

FOLDER, LORA_FOLDER = "diffusers", "lora"  # of the pipeline and of the low-rank layers, inside an export
UNET = "backbone.unet."


class PipelineMethod(Method):
    """Base of methods that tune a latent model's UNet or a part of it, in place, whole or by low-rank layers, and maybe more.

    A second copy of a large UNet would fill the card that has to train it. A subclass sets `backbone`, adds to `trainable`
    what else it trains, and writes `save_pipeline`. Low-rank layers are there while it trains: an export has them merged
    into the weights, and once more as they are, in lora/.

    Args:
        lora: fields of `Lora`; None tunes the layers themselves.

    Attributes:
        kind: what its files call themselves.
        strip: beginning of the parameters' names that its files leave out.
        tuned_layers: beginnings of the names of the UNet's layers that are tuned.
        new_layers: beginnings of the names of those that are made for this training and learn as a whole, low-rank or not.
        starts_from: digest of the backbone that training began with; None before training.
    """

    kind: ClassVar[str]
    strip: ClassVar[str] = ""
    tuned_layers: ClassVar[tuple[str, ...]] = ("",)
    new_layers: tuple[str, ...] = ()
    starts_from: str | None = None

    backbone: LatentBackbone

    def __init__(
        self,
        *,
        lora: Mapping[str, Any] | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.lora = Lora.of(lora)

    @abstractmethod
    def save_pipeline(self, folder: Path) -> None:
        """Write the whole model in half precision, in diffusers' layout, with the weights that the method holds now."""

    def prepare_training(self) -> None:
        """Note which weights the training starts from, and make the UNet ready for it, in single precision."""
        self.starts_from = self.backbone.digest()
        self.backbone.unet.float()
        if self.lora is not None:
            add_lora(self.backbone.unet, self.lora, self.tuned_layers)

    def tuned_parameters(self) -> list[nn.Parameter]:
        """Return the UNet's parameters that are trained."""
        unet = self.backbone.unet
        whole = self.new_layers if has_lora(unet) else self.tuned_layers
        own = [parameter for name, parameter in unet.named_parameters() if whole and name.startswith(whole)]
        return [*own, *lora_parameters(unet)]

    def whole_state(self) -> dict[str, Tensor]:
        """Return `trained_state` as it is without low-rank layers: those are merged into the tuned layers."""
        state, unet = self.trained_state(), self.backbone.unet
        if not has_lora(unet):
            return state
        others = {name: tensor for name, tensor in state.items() if not name.startswith(UNET)}
        tuned = {name: tensor for name, tensor in merged(unet).state_dict().items() if name.startswith(self.tuned_layers)}
        return {**others, **{f"{UNET}{name}": tensor for name, tensor in tuned.items()}}

    def artefacts(self) -> list[Artefact]:
        """Return what was trained, in half precision, named after the recipe."""
        (trained,) = super().artefacts()
        tensors = {name.removeprefix(self.strip): tensor.half() for name, tensor in self.whole_state().items()}
        return [Artefact(trained.name, tensors, card=trained.card)]

    def card(self) -> dict[str, Any]:
        """Return what the exported file says; the backbone that it names is the one that training began with."""
        card = {**super().card(), "kind": self.kind}
        card |= {} if self.lora is None else {"lora": asdict(self.lora)}
        return card if self.starts_from is None else {**card, "backbone_digest": self.starts_from}

    def exported_bytes(self) -> int:
        """Return about how many bytes `export` writes: what was trained and the pipeline, both in half precision."""
        return super().exported_bytes() // 2 + sum(weight.numel() * 2 for weight in self.parameters())

    def export(self, folder: str | Path) -> list[Path]:
        """Write what was trained (its EMA, if there is one) and the pipeline in diffusers/; return the files of weights."""
        paths, home = super().export(folder), Path(folder)
        with self.averaged_weights():
            self.save_pipeline(home / FOLDER)
            if has_lora(self.backbone.unet):
                save_lora(self.backbone.unet, home / LORA_FOLDER, self.new_layers)
        written = sorted(path for inner in (FOLDER, LORA_FOLDER) for path in (home / inner).rglob("*.safetensors"))
        for path in written:
            usual_mode(path)
        return [*paths, *written]
