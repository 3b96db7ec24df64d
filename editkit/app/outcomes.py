"""What baselines made, kept in files: methods of a family that are asked the same are held against the same pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from editkit.app.contest import Outcome
from editkit.app.loaded import Loaded
from editkit.app.questions.base import Cases
from editkit.app.trial import plain
from editkit.engine.atomic import write_bytes

RETURNED = "returned"


def lasting(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entrant ran with, without the versions of the programs."""
    return {key: value for key, value in plain(provenance).items() if key != "versions"}


def kept_or(folder: Path, loaded: Loaded, cases: Cases, settings: Mapping[str, Any], make: Callable[[], Outcome]) -> Outcome:
    """Return what an entrant made of the same cases with the same settings before, or else make it and keep it.

    Args:
        folder: of the files, each named by a digest of all that its pictures depend on.
        settings: further conditions, as plain values.
    """
    asked = {"edit": cases.edit.name, "keys": cases.keys, "pixels": hashlib.sha256(cases.images.numpy().tobytes()).hexdigest()}
    told = json.dumps({**asked, "with": lasting(loaded.provenance), **settings}, sort_keys=True, default=str)
    path = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.safetensors"
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _read(path: Path) -> Outcome | None:
    """Return an outcome; None where no file is, or a broken one."""
    try:
        with safe_open(path, framework="pt") as file:
            costs = json.loads(file.metadata()["costs"])
            pictures = {name: file.get_tensor(name).float() / 127.5 - 1 for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return None
    returned = pictures.pop(RETURNED, None)
    return Outcome({kind: pictures[kind] for kind in costs.pop("variants")}, **costs, returned=returned)


def _write(path: Path, outcome: Outcome) -> None:
    pictures = dict(outcome.variants) if outcome.returned is None else {**outcome.variants, RETURNED: outcome.returned}
    costs = {"variants": list(outcome.variants), "seconds": outcome.seconds, "calls": outcome.calls}
    tensors = {name: _bytes(images) for name, images in pictures.items()}
    write_bytes(path, save(tensors, metadata={"costs": json.dumps(costs)}))


def _bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()
