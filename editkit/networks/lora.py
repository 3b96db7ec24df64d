"""Low-rank layers beside a network's own (LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1): W x + alpha / rank B A x."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from editkit.errors import UsageError, UserError, suggestion

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # of diffusers' attention blocks
ADAPTER, WHOLE = "pytorch_lora_weights.safetensors", "whole_layers.safetensors"

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Lora:
    """Which layers get low-rank ones beside them, and how large.

    Attributes:
        rank: rows of A and columns of B.
        alpha: alpha / rank is the factor of what they add; None is a factor of 1.
        targets: last parts of the layers' names.
    """

    rank: int = 16
    alpha: float | None = None
    targets: Sequence[str] = ATTENTION

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Lora | None:
        """Return what a recipe's `method.lora` says; null is no such layers.

        Raises:
            UsageError: an unknown key, or a value that cannot be.
        """
        if given is None:
            return None
        names = [field.name for field in fields(cls)]
        for key in given:
            if key not in names:
                raise UsageError(f"method.lora has no {key!r}.{suggestion(key, names)} Its keys are {', '.join(names)}")
        lora = cls(**given)
        if not isinstance(lora.rank, int) or lora.rank < 1:
            raise UsageError(
                f"method.lora.rank={lora.rank} must be a whole number from 1 on; method.lora=null trains all weights"
            )
        if isinstance(lora.targets, str) or not lora.targets:
            raise UsageError(f"method.lora.targets={lora.targets} must be a list of layers such as [{', '.join(ATTENTION)}]")
        return lora


def add_lora(network: nn.Module, lora: Lora, within: tuple[str, ...] = ("",)) -> None:
    """Put low-rank layers, which add nothing yet, beside the linear and convolutional layers that `lora` names.

    Args:
        network: one of diffusers.
        within: beginnings of the names of the layers that may get them.

    Raises:
        UserError: peft is not installed.
        UsageError: there are no such layers.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError("method.lora is made with peft, which is not installed: pip install 'editkit[lora]'") from error
    ends = tuple(f".{target}" for target in lora.targets)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    chosen = [name for name in layers if name.startswith(within) and f".{name}".endswith(ends)]
    if not chosen:
        raise UsageError(
            f"method.lora.targets=[{', '.join(lora.targets)}] names no linear or convolutional layer that is trained here: "
            f"give the last parts of their names, such as [{', '.join(ATTENTION)}]"
        )
    alpha = lora.rank if lora.alpha is None else lora.alpha
    network.add_adapter(LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=chosen))


def has_lora(network: nn.Module) -> bool:
    """Return whether `add_lora` was here."""
    return bool(getattr(network, "peft_config", None))


def lora_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the low-rank layers."""
    return [parameter for name, parameter in network.named_parameters() if ".lora_" in name]


def merged(network: Network, memo: dict[int, Any] | None = None) -> Network:
    """Return a copy in which low-rank layers, where there are any, have become part of the weights.

    Args:
        memo: see `copy.deepcopy`.
    """
    network = copy.deepcopy(network, memo)
    for part in [part for part in network.modules() if has_lora(part)]:
        part.fuse_lora()
        part.unload_lora()
    return network


def save_lora(unet: nn.Module, folder: Path, whole: tuple[str, ...] = ()) -> None:
    """Write the low-rank layers of a UNet as the file that diffusers' `load_lora_weights` opens.

    Args:
        whole: beginnings of the names of layers that were trained whole; a second file holds those, by their names in the UNet.
    """
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    (config,) = unet.peft_config.values()
    layers = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(unet).items()}
    about = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=about)
    settle(folder / ADAPTER)
    others = {name: p.detach().cpu().contiguous() for name, p in unet.named_parameters() if whole and name.startswith(whole)}
    if others:
        save_file(others, folder / WHOLE, metadata={"format": "pt"})


def settle(file: Path) -> None:
    """Sort the metadata of a safetensors file, whose order is another each time if they are several."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
