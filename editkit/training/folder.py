"""Methods whose trained network is a folder in a layout of its own, not an artefact on a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editkit.engine.atomic import usual_mode
from editkit.training.method import Artefact, Method


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
