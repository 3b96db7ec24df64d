"""What is known of a batch whose gradient became NaN or infinite, in a file of the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editkit.engine.atomic import write_bytes
from editkit.training.rundir import RunDir, is_first_process
from editkit.training.share import gathered
from editkit.training.update import Update


def report(run: RunDir, step: int, update: Update, batch: Mapping[str, Any]) -> Path | None:
    """Write not-finite-step-XXXXXXXX.json: of every process the batch's keys and losses, one value per image where there is.

    All processes call it, for they have the same gradient; the first one writes.

    Returns:
        the file; None where the disk refuses it.
    """
    own = {
        "images": [str(key) for key in batch.get("key", ())],
        "losses": {name: _plain(value) for name, value in update.losses.items()},
    }
    about = {"step": step, "group": update.group, "processes": gathered(own)}
    path = run.not_finite(step)
    try:
        if is_first_process():
            write_bytes(path, (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())
    except OSError:
        return None
    return path


def _plain(value: Tensor) -> list[float | str]:
    """Return numbers; those that JSON does not know as "nan", "inf" and "-inf"."""
    return [one if math.isfinite(one) else str(one) for one in torch.atleast_1d(value.detach().float()).flatten().tolist()]
