"""Methods whose trained network is a folder in a layout of its own, not an artefact on a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.engine.atomic import usual_mode
from editkit.training.method import Artefact, Method


def write_preprocessor(folder: Path, processor: str, side: int) -> None:
    """Write the preprocessor_config.json of a network that takes squares of `side` pixels in [-1, 1]."""
    config = {
        "image_processor_type": processor,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


class FolderMethod(Method):
    """Base of methods that train a network of their own; a subclass writes `save`."""

    def save(self, folder: Path) -> None:
        """Write the network into a folder, its weights as safetensors."""
        raise NotImplementedError(f"{type(self).__name__}.save")

    def artefacts(self) -> list[Artefact]:
        """Return nothing: the export is the folder."""
        return []

    def export(self, folder: str | Path) -> list[Path]:
        """Write the network (its EMA, if there is one) with its card beside it; return the files of its weights."""
        with self.averaged_weights():
            self.save(Path(folder))
        paths = sorted(Path(folder).rglob("*.safetensors"))
        for path in paths:
            usual_mode(path)
        (Path(folder) / "card.json").write_text(json.dumps(self.card(), indent=2) + "\n")
        return paths


def network_arguments(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's arguments of a network as plain numbers, texts and lists, which a saved config can hold."""
    scalar = (str, int, float, bool, type(None))
    return {name: value if isinstance(value, scalar) else list(value) for name, value in network.items()}
