"""Networks without their weights: every parameter is on the meta device, so that a large model is built in no memory.

Configuration files say what to build; where a published model is not on this machine, assets/architectures.yaml does.
"""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from diffusers import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from editkit.backbones.assets import PREFIX, STAND_INS, resolve
from editkit.backbones.autoencoder import Autoencoder
from editkit.backbones.base import Backbone
from editkit.backbones.features import FeatureNet

FILE = Path(__file__).parent.parent / "assets" / "architectures.yaml"
TOKENIZER = f"{PREFIX}toy-clip"


@contextmanager
def weightless() -> Iterator[None]:
    """Build networks on the meta device while the context is open, whether their weights are on this machine or not.

    Buffers are real. A digest of such a network is of nothing.
    """
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="editkit-plan-")))
        token = STAND_INS.set(_written(place))
        stack.callback(STAND_INS.reset, token)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        register = nn.Module.register_parameter
        stack.enter_context(replaced(nn.Module, "register_parameter", functools.partialmethod(_registered, register)))
        stack.enter_context(replaced(ModelMixin, "from_pretrained", classmethod(_of_diffusers)))
        stack.enter_context(replaced(PreTrainedModel, "from_pretrained", classmethod(_of_transformers)))
        stack.enter_context(replaced(FeatureNet, "load", classmethod(_of_features)))
        for kind in (Backbone, Autoencoder):
            stack.enter_context(replaced(kind, "digest", lambda self: "0" * 16))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put another attribute in place of an owner's own while the context is open."""
    own = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def known() -> Mapping[str, Mapping[str, Any]]:
    """Return {name of published weights: {part: configuration}}; the part of a folder that has no parts is "."."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))["folders"]


def _written(place: Path) -> dict[str, Path]:
    """Write the configuration files of all known architectures; return their folders by name."""
    homes = {}
    for number, (name, parts) in enumerate(known().items()):
        home = homes[name] = place / str(number)
        for part, config in parts.items():
            (home / part).mkdir(parents=True, exist_ok=True)
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            (home / part / file).write_text(json.dumps(config), encoding="utf-8")
        if "text_encoder" in parts or "text_config" in parts.get(".", {}):
            _lend_tokenizer(home / "tokenizer" if "text_encoder" in parts else home)
    return homes


def _lend_tokenizer(home: Path) -> None:
    home.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(resolve(TOKENIZER) / name, home / name)


def _registered(module: nn.Module, register: Any, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is not None and not parameter.is_meta:
        parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    register(module, name, parameter)


def _of_diffusers(cls: Any, folder: str | Path, *, torch_dtype: torch.dtype | None = None, **_: Any) -> Any:
    network = cls.from_config(cls.load_config(folder)).eval()
    return nn.Module.to(
        network, torch_dtype
    )  # diffusers' own `to` warns of layers to be kept in float32, of which there are none


def _of_transformers(
    cls: Any, folder: str | Path, *, dtype: torch.dtype | None = None, output_loading_info: bool = False, **_: Any
) -> Any:
    network = cls(cls.config_class.from_pretrained(folder)).eval().to(dtype or torch.float32)
    return (network, {"missing_keys": []}) if output_loading_info else network


def _of_features(cls: Any, folder: str | Path) -> Any:
    config = json.loads((resolve(folder) / "config.json").read_text(encoding="utf-8"))
    config.pop("kind")
    return cls(**config).eval().requires_grad_(False)
