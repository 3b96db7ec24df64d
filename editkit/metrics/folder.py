"""The folders of the networks that judge: config.json and model.safetensors, half precision on disk, single in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from editkit.backbones.assets import resolve
from editkit.errors import UserError

Net = TypeVar("Net", bound=nn.Module)


def write(net: nn.Module, folder: str | Path, kind: str, config: Mapping[str, Any]) -> None:
    """Write a network with what it takes to build it again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"kind": kind, **config}, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.detach().half().contiguous().cpu() for name, value in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def read(path: str | Path, kind: str, make: Callable[[Mapping[str, Any]], Net]) -> Net:
    """Return the network of a folder that `write` wrote, frozen and in evaluation mode.

    Args:
        path: folder, or the name of bundled weights.
        kind: what it must be.
        make: builds it from its configuration.

    Raises:
        UserError: no such folder, or it holds something else.
    """
    folder = resolve(path)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config["kind"] != kind:
            raise ValueError(f"its kind is {config['kind']}")
        net = make(config)
        net.load_state_dict({name: value.float() for name, value in load_file(folder / "model.safetensors").items()})
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no {kind} ({error}): name a folder that its recipe exported, or a bundled one") from None
    return net.eval().requires_grad_(False)
