"""Methods whose trained network is a folder in a layout of its own, not an artefact on a backbone."""

from __future__ import annotations

import json
from pathlib import Path

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

    def save(self, folder: Path) -> Path:
        """Write the network into a folder and return the file of its weights."""
        raise NotImplementedError(f"{type(self).__name__}.save")

    def artefacts(self) -> list[Artefact]:
        """Return nothing: the export is the folder."""
        return []

    def export(self, folder: str | Path) -> list[Path]:
        """Write the network (its EMA, if there is one) with its card beside it; return the file of the weights."""
        with self.averaged_weights():
            path = self.save(Path(folder))
        usual_mode(path)
        (Path(folder) / "card.json").write_text(json.dumps(self.card(), indent=2) + "\n")
        return [path]
