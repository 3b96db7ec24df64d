"""Finding the trained parts an edit uses: bundled ones by prompt, a user's own by `--weights [NAME=]PATH[:STRENGTH]`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit.errors import UsageError, UserError, suggestion
from editkit.training.artefact import Artefact, read_card

if TYPE_CHECKING:
    from editkit.backbones.base import Backbone

PICKLES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar"})


@dataclass(frozen=True)
class Weights:
    """One artefact file that could be used.

    Attributes:
        path: the safetensors file.
        card: what it says about itself.
        name: what the user calls it, or None for its own name.
        strength: how strongly it is applied, 1 = as trained.
    """

    path: Path
    card: dict[str, Any]
    name: str | None = None
    strength: float = 1.0

    @property
    def target(self) -> str:
        """The text or the style picture that it was trained towards, or "" when it serves any text."""
        return str(next(filter(None, map(self.card.get, ("target", "prompt", "style_picture"))), ""))

    def answers(self, text: str) -> bool:
        """Say whether a prompt means these weights: by target text, by name or by file name."""
        return _plain(text) in {_plain(self.target), _plain(str(self.card.get("name", ""))), _plain(self.path.stem)}

    def load(self) -> Artefact:
        """Read the tensors."""
        return Artefact.load(self.path, name=self.name, strength=self.strength)


def bundled(method: str) -> list[Weights]:
    """Return the artefacts that ship with editkit for a method, by file name."""
    folder = Path(str(resources.files("editkit"))) / "assets" / method
    return [Weights(path, read_card(path)) for path in sorted(folder.glob("*.safetensors"))]


def choose(
    method: str,
    weights: Sequence[str] = (),
    *,
    prompt: str | None = None,
    default: str | None = None,
    backbone: str | None = None,
) -> list[Weights]:
    """Return the artefacts to use: those named in `weights`, else bundled ones for the prompt.

    Args:
        method: folder of the bundled artefacts.
        weights: `[NAME=]PATH[:STRENGTH]`; PATH is a file, a run or export folder, or the name of a bundled artefact.
        prompt: what the user asked for.
        default: the recipe's own target, used when nothing was asked for.
        backbone: digest of the backbone in use; bundled artefacts of other backbones are not on offer.

    Raises:
        UsageError: a prompt that no artefact was trained for; the available ones are listed.
        UserError: a file that is missing, a pickle, or no artefact.
    """
    if weights:
        own = [found for text in weights for found in _typed(text, method, prompt)]
        return _of_prompt(own, prompt, f"the given --weights are for {_targets(own)}") if prompt else own
    offered = [found for found in bundled(method) if backbone is None or found.card.get("backbone_digest", backbone) == backbone]
    if prompt is not None and offered:
        ask = f"train it with `editkit train recipe={method} --prompt {prompt!r}`, or give --weights"
        return _of_prompt(offered, prompt, f"ready to use are {_targets(offered)}; {ask}")
    general = [found for found in offered if not found.target]
    texts = [found for found in offered if found.target]
    chosen = [found for found in texts if default and found.answers(default)] or (texts if len(texts) == 1 else [])
    if texts and not chosen:
        raise UsageError(f"{method} needs --prompt: ready to use are {_targets(offered)}")
    return general + chosen


def check_backbone(chosen: Sequence[Weights], backbone: Backbone, name: str) -> None:
    """Hold what the artefacts say about their backbone against the one in use.

    Raises:
        UserError: they were trained on another one.
    """
    shape, digest = list(backbone.bottleneck_shape), backbone.digest()
    for one in chosen:
        theirs = one.card.get("bottleneck_shape")
        if theirs is not None and list(theirs) != shape:
            raise UserError(
                f"{one.path} was trained on another backbone: its bottleneck is {_by(theirs)}, that of {name} is {_by(shape)}. "
                f"Use the backbone it was trained on, or train on this one"
            )
        if one.card.get("backbone_digest", digest) != digest:
            raise UserError(
                f"{one.path} was trained on another backbone: weights {one.card['backbone_digest']}, those of {name} are "
                f"{digest}. Use the backbone it was trained on, or train on this one"
            )


def parse(text: str) -> tuple[str | None, str, float]:
    """Return (name, path, strength) of `[NAME=]PATH[:STRENGTH]`; what exists as a file is a path to its last character."""
    if Path(text).exists():
        return None, text, 1.0
    name, path, strength = None, text, 1.0
    head, colon, tail = path.rpartition(":")
    if colon and head:
        with contextlib.suppress(ValueError):  # a colon that belongs to the path
            path, strength = head, float(tail)
    head, equals, tail = path.partition("=")
    if equals and not Path(path).exists():
        name, path = head, tail
    if not path or name == "":
        raise UsageError(f"--weights {text} is not of the form [NAME=]PATH[:STRENGTH]")
    return name, path, strength


def _typed(text: str, method: str, prompt: str | None) -> list[Weights]:
    name, given, strength = parse(text)
    path = Path(given).expanduser()
    if path.is_dir():
        return [Weights(file, read_card(file), name, strength) for file in _in_folder(path, prompt)]
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run any program when it is read: turn it into safetensors first with "
            f"`editkit convert {path}`"
        )
    if path.is_file():
        return [Weights(path, read_card(path), name, strength)]
    known = bundled(method)
    by_name = [found for found in known if found.answers(given)]
    if by_name:
        return [Weights(by_name[0].path, by_name[0].card, name, strength)]
    names = [found.path.stem for found in known]
    listed = f" Bundled for {method}: {', '.join(names)}" if names else ""
    raise UserError(f"there are no weights {given} (--weights).{suggestion(given, names)}{listed}")


def _in_folder(folder: Path, prompt: str | None) -> list[Path]:
    home = folder / "export" if (folder / "export").is_dir() else folder
    files = sorted(home.glob("*.safetensors"))
    if not files:
        raise UserError(f"there are no weights (*.safetensors) in {home} (--weights)")
    if prompt is None or len(files) == 1:
        return files
    return [found.path for found in _of_prompt([Weights(file, read_card(file)) for file in files], prompt, f"in {home}")]


def by_method(weights: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the weights of each of several methods, given as METHOD=PATH[:STRENGTH].

    Raises:
        UsageError: a text without a method, or with one that is not among the names.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    for text in weights:
        name, equals, path = text.partition("=")
        if not equals or name not in found:
            raise UsageError(f"--weights {text}: write METHOD=PATH, with one of {', '.join(names)}")
        found[name].append(path)
    return found


def _of_prompt(weights: Sequence[Weights], prompt: str, otherwise: str) -> list[Weights]:
    """Return the weights that serve a prompt: its own, and those that serve any."""
    chosen = [found for found in weights if not found.target or found.answers(prompt)]
    if not chosen:
        hint = suggestion(prompt, [found.target for found in weights])
        raise UsageError(f"there are no weights for the prompt {prompt!r}.{hint} {otherwise[0].upper()}{otherwise[1:]}")
    return chosen


def _targets(weights: Sequence[Weights]) -> str:
    return ", ".join(repr(found.target or found.path.stem) for found in weights)


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .!").split())


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
