"""Where weights are on this machine: bundled ones by "editkit:NAME", others by folder or by their hub name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextvars import ContextVar
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from editkit.backbones.registry import HUB_FILES, Entry, File, original, provider
from editkit.errors import UserError, suggestion

PREFIX = "editkit:"
# Folders by the names of published weights, for those that are in neither place of files that editkit writes.
STAND_INS: ContextVar[Mapping[str, Path]] = ContextVar("stand_ins", default=MappingProxyType({}))


def bundled() -> list[str]:
    """Return the names of the weights that ship with the package."""
    root = _assets()
    return (
        sorted(entry.name for entry in root.iterdir() if (entry / "config.json").exists() or (entry / "unet").exists())
        if root.is_dir()
        else []
    )


def card_of(path: str | Path) -> dict[str, Any]:
    """Return what the card.json beside some weights says; nothing without such weights, or a card that can be read."""
    try:
        card = json.loads((resolve(path) / "card.json").read_text(encoding="utf-8"))
    except (OSError, UserError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def spent_on(path: str | Path) -> float | None:
    """Return the seconds that some weights took to train, with those of the stages before; None if their card does not say."""
    card = card_of(path)
    return float(card["training_seconds"]) + float(card.get("earlier_seconds", 0)) if "training_seconds" in card else None


def resolve(path: str | Path, *, download: bool = False, revision: str | None = None) -> Path:
    """Return the local folder (or file) of some weights: a bundled name, a folder, or a hub name that is already on this machine.

    A hub name ("google/ddpm-ema-church-256") is looked up in $EDITKIT_WEIGHTS (weights/ if that is not set, where
    `editkit weights fetch` puts things), then in the Hugging Face cache; the network is used only with `download`. What
    `editkit convert` makes of a published file ("guided-diffusion/lsun_cat" of lsun_cat.pt) is looked up in the former alone.

    Raises:
        UserError: the weights are not here; the message says what to type.
    """
    name = str(path)
    if name.startswith(PREFIX):
        return _bundled_folder(name)
    local = Path(name).expanduser()
    if local.exists():
        return local
    store = Path(os.environ.get("EDITKIT_WEIGHTS") or "weights")
    if (store / name).is_dir():
        return store / name
    if name in STAND_INS.get():
        return STAND_INS.get()[name]
    published = original(name)
    if published is not None:
        raise UserError(_to_convert(name, *published, store))
    if not _is_hub_name(name):
        raise UserError(f"no weights at {name}: give a folder that exists, or one of the bundled names: {_listed()}")
    return _from_hub(name, download=download, revision=revision)


def _assets() -> Path:
    return Path(str(resources.files("editkit"))) / "assets"


def _bundled_folder(name: str) -> Path:
    folder = _assets() / name.removeprefix(PREFIX)
    if not folder.exists():
        raise UserError(
            f"no bundled weights named {name}.{suggestion(name, [PREFIX + n for n in bundled()])} Bundled are: {_listed()}"
        )
    return folder


def _listed() -> str:
    return ", ".join(PREFIX + name for name in bundled()) or "none"


def _to_convert(name: str, entry: Entry, file: File, store: Path) -> str:
    convert = f"`{entry.conversion(file, store)}`"
    if (store / entry.name / file.name).is_file():
        return f"the weights {name} are fetched but not converted: run {convert}"
    fetch = f"editkit weights fetch {entry.name}/{file.name}"
    if file.sources:
        return f"the weights {name} are not on this machine: run `{fetch}`, then {convert}"
    by_hand = f"download {file.name} from {entry.page} into a folder DIR"
    return f"the weights {name} are not on this machine: {by_hand}, run `{fetch} --offline DIR`, then {convert}"


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def _from_hub(name: str, *, download: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    known = provider(name)
    wanted = known.only if known else HUB_FILES
    if known and known.hub:
        revision = revision or known.revision
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=not download, allow_patterns=list(wanted)))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        how = (
            f"`editkit weights fetch {known.name}`" if known else f"`hf download {name} --local-dir DIR` and give DIR as the path"
        )
        if download:
            how = f"{how} on a machine that can, and copy the folder here"
            raise UserError(
                f"the weights {name} are not on this machine and cannot be fetched from the hub: run {how}"
            ) from error
        raise UserError(f"the weights {name} are not on this machine: run {how}, or set download=true beside the path") from error
