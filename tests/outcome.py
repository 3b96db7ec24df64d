"""What a run leaves behind, to be compared with another run's."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from editkit.training import checkpoint
from editkit.training.rundir import RunDir
from editkit.training.throughput import FIGURES


def result(run: RunDir) -> dict[str, bytes]:
    """Return every byte that a run leaves behind, but for times."""
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    files = [newest / "weights.safetensors", newest / "state.safetensors"]
    exported = sorted(path for path in run.export.rglob("*") if path.is_file())
    with run.metrics.open() as file:
        rows = [{key: value for key, value in row.items() if key not in FIGURES} for row in csv.DictReader(file)]
    content = {str(path.relative_to(run.path)): path.read_bytes() for path in files}
    content |= {str(path.relative_to(run.path)): _timeless(path) for path in exported}
    return {**content, "metrics": repr(rows).encode(), "state": _state_without_place(newest, run)}


def _timeless(path: Path) -> bytes:
    """Return an exported file without the seconds in its card; of safetensors the header's card, then every tensor's bytes."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        content = json.dumps(header, sort_keys=True).encode() + content[8 + size :]
    return re.sub(rb'\\*"training_seconds\\*": [0-9.]+', b"", content)


def _state_without_place(newest: Path, run: RunDir) -> bytes:
    return (newest / "state.json").read_bytes().replace(str(run.path).encode(), b"RUN")
