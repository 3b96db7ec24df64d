"""Methods that tune parts of a pipeline: what they export, beside their own file, is a folder that diffusers opens."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from editkit.engine.atomic import usual_mode
from editkit.training.method import Method

FOLDER = "diffusers"  # of the pipeline, inside an export


class PipelineMethod(Method):
    """Base of such methods; a subclass writes `save_pipeline` and notes `starts_from` before it trains.

    Attributes:
        kind: what its files call themselves.
        starts_from: digest of the backbone that training began with; None before training.
    """

    kind: ClassVar[str]
    starts_from: str | None = None

    @abstractmethod
    def save_pipeline(self, folder: Path) -> None:
        """Write the whole model in half precision, in diffusers' layout, with the weights that the method holds now."""

    def card(self) -> dict[str, Any]:
        """Return what the exported file says; the backbone that it names is the one that training began with."""
        card = {**super().card(), "kind": self.kind}
        return card if self.starts_from is None else {**card, "backbone_digest": self.starts_from}

    def export(self, folder: str | Path) -> list[Path]:
        """Write what was trained (its EMA, if there is one) and the pipeline in diffusers/; return the files of weights."""
        paths = super().export(folder)
        home = Path(folder) / FOLDER
        with self.averaged_weights():
            self.save_pipeline(home)
        written = sorted(home.rglob("*.safetensors"))
        for path in written:
            usual_mode(path)
        return [*paths, *written]
