"""A trained part in one safetensors file that says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editkit.backbones.assets import resolve
from editkit.engine.atomic import usual_mode
from editkit.errors import UserError


@dataclass
class Artefact:
    """A trained part of a method (a delta-h, an adapter...), apart from the frozen backbone that it belongs to.

    Attributes:
        name: what a person calls it: the target ("a smiling face") or the recipe's name; unique within an export.
        tensors: its weights by parameter name.
        strength: how strongly it is applied, 1 = as trained; negative goes the other way where the method can.
        card: method, prompts, recipe, steps, figures, licence... anything JSON can hold.
    """

    name: str
    tensors: dict[str, Tensor]
    strength: float = 1.0
    card: dict[str, Any] = field(default_factory=dict)

    def halved(self) -> Artefact:
        """Return it in half precision, as whole networks are kept on disk."""
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in self.tensors.items()}
        return replace(self, tensors=halves)

    def save(self, path: str | Path) -> Path:
        """Write the file; the card travels in its metadata under the key "editkit"."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.tensors.items()}
        draft = path.with_name(f".{path.name}.part")
        save_file(tensors, draft, metadata={"editkit": json.dumps({**self.card, "name": self.name})})
        usual_mode(draft)
        draft.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path, *, name: str | None = None, strength: float = 1.0) -> Artefact:
        """Read a file that `save` wrote; `name` replaces the one in its card.

        Raises:
            UserError: no such file, not safetensors (pickles are never read), or one without editkit's card.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no weights at {path}; train them or give another --weights")
        try:
            with safe_open(path, framework="pt") as file:
                card = _card(path, file.metadata())
                names = file.keys()
                tensors = {key: file.get_tensor(key) for key in names}
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file ({error}); pickled weights go through: editkit convert") from error
        return cls(name or card.get("name", path.stem), tensors, strength, card)


def trained_files(paths: Sequence[str], run_dir: Path, key: str) -> list[Artefact]:
    """Return the files at `paths`, which a recipe gives as method.KEY, or else those that the run itself exported.

    Raises:
        UserError: there are none.
    """
    found = [resolve(path) for path in paths] or sorted((run_dir / "export").glob("*.safetensors"))
    if not found:
        raise UserError(f"nothing trained in {run_dir / 'export'}: give trained files as method.{key}=[FILE]")
    return [Artefact.load(path) for path in found]


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of an artefact file without reading its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return _card(Path(path), file.metadata())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error})") from error


def _card(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        card = json.loads((metadata or {})["editkit"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} carries no editkit card; it was not exported by: editkit train") from error
    if not isinstance(card, dict):
        raise UserError(f"{path} carries an editkit card that is not a mapping, but {type(card).__name__}")
    return card
