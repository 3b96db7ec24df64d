"""Feature networks whose layers have the names of the published file: filled, and written in single precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from editkit.backbones.features import FeatureNet
from editkit.errors import UserError


def filled(net: FeatureNet, name: str, tensors: Mapping[str, Tensor]) -> FeatureNet:
    """Return a network with these tensors; counters of seen batches may be missing.

    Raises:
        UserError: other names or shapes than the network's.
    """
    own = net.state_dict()
    odd = [key for key in own.keys() ^ tensors.keys() if not key.endswith("num_batches_tracked")]
    odd += [key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape]
    if odd:
        seen = tuple(tensors[min(odd)].shape) if min(odd) in tensors else "missing"
        raise UserError(f"{name} is a variant that cannot be converted: {len(odd)} of its tensors differ, {min(odd)} is {seen}")
    net.load_state_dict(own | dict(tensors))
    return net


def write_features(folder: Path, net: FeatureNet) -> None:
    """Write config.json and model.safetensors, which `FeatureNet.load` reads."""
    (folder / "config.json").write_text(json.dumps({"kind": net.kind, **net.config}, indent=2) + "\n")
    save_file({name: value.detach().contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors")
