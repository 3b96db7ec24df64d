"""What is known of the batches whose gradient became NaN or infinite, in a file of the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from editkit.engine.atomic import write_bytes
from editkit.training.rundir import RunDir, is_first_process
from editkit.training.share import gathered

Seen = tuple[list[str], Mapping[str, Tensor]]  # of a batch the keys of its images, and its losses


def report(run: RunDir, step: int, group: str, batches: Sequence[Seen]) -> Path | None:
    """Write not-finite-step-XXXXXXXX.json: of every process the images and losses of each batch that the step is made of.

    All processes call it, for they have the same gradient; the first one writes.

    Returns:
        the file; None where the disk refuses it.
    """
    own = [{"images": keys, "losses": {name: _plain(value) for name, value in losses.items()}} for keys, losses in batches]
    about = {"step": step, "group": group, "processes": gathered(own)}
    path = run.not_finite(step)
    try:
        if is_first_process():
            write_bytes(path, (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())
    except OSError:
        return None
    return path


def _plain(value: Tensor) -> list[float | str]:
    """Return a loss or one per image as numbers; those that JSON does not know as "nan", "inf" and "-inf"."""
    return [one if math.isfinite(one) else str(one) for one in torch.atleast_1d(value.detach().float()).flatten().tolist()]
