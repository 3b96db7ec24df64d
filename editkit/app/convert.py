"""What `editkit convert` does: another publisher's checkpoint becomes a folder or a file that editkit reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit.app.options import option
from editkit.errors import UsageError, UserError, suggestion

if TYPE_CHECKING:
    from editkit.backbones.convert.layout import Converted, Layout

CARD = "card.json"
UNKNOWN = "not given"


@dataclass(kw_only=True)
class ConvertOptions:
    """The inputs of `editkit convert`.

    Attributes:
        source: the checkpoint.
        settings: what no shape tells, as KEY=VALUE; which keys there are depends on the layout.
        output: a folder, or a .safetensors file for a trained part; None = the source's name without its ending.
    """

    source: Path | None = option("Checkpoint to convert: .ckpt, .pt, .pth, .bin or .safetensors.", positional=True)
    settings: list[str] = option("What its tensors do not tell, as key=value.", default=[], positional=True)
    layout: str | None = option("Layout of the checkpoint; recognised if not given.")
    output: Path | None = option("Folder to write, or a .safetensors file for a trained edit.", also="-o")
    licence: str | None = option("Licence of these weights, for the card.")
    prompt: str | None = option("What the edit shows that a trained edit was trained for.")
    source_prompt: str | None = option("What the images show before that edit.")
    force: bool = option("Replace what an earlier conversion wrote.", default=False)


def convert(options: ConvertOptions) -> tuple[Path, list[str]]:
    """Convert a checkpoint; return where the result lies, and what to tell of it.

    The result appears whole or not at all. Its card holds the source's name, size and SHA-256, layout and licence.

    Raises:
        UsageError: no source, an unknown layout or setting, an input without use, an output that is already there.
        UserError: a file that cannot be read as data alone, or is in no layout that is known.
    """
    from editkit.backbones.convert.layout import Source
    from editkit.backbones.convert.layouts import find
    from editkit.backbones.convert.reading import read_checkpoint

    path = options.source
    if path is None:
        raise UsageError("convert needs a checkpoint: editkit convert FILE")
    settings = _settings(options.settings)
    if options.output is not None:
        _check_free(options.output, options.force)
    found = find(path.name, read_checkpoint(path), layout=options.layout, part=settings.pop("part", None))
    _check_keys(settings, found.layout)
    source = Source(path, found.tensors, settings, options.prompt, options.source_prompt)
    made = found.layout.convert(source)
    if made.tensors is None and (options.prompt or options.source_prompt):
        raise UsageError(f"{path.name} is no trained edit but {found.layout.name}: leave out --prompt and --source-prompt")
    target = options.output or path.with_suffix("" if made.tensors is None else ".safetensors")
    _check_target(target, made, options.force)
    card = {
        **made.card,
        "layout": found.layout.name,
        "licence": options.licence or UNKNOWN,
        "source": described(path) | ({"part": found.place} if found.place else {}),
        **({"companions": [described(file) for file in source.companions]} if source.companions else {}),
    }
    publish(target, lambda draft: _write(draft, made, card))
    told = [f"{found.layout.name}: {_figures(made.card)}", *made.news]
    if found.others:
        told.append(f"part={found.place} was taken of {path.name}, which also holds {', '.join(found.others)}")
    return target, [*told, f"use: {made.use.format(path=target)}"]


def described(path: Path) -> dict[str, Any]:
    """Return a file's name, size in bytes and SHA-256."""
    import hashlib

    with open(path, "rb") as file:
        return {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a draft beside the target, flush it to disk, and put it in the target's place by renaming.

    Raises:
        UserError: the disk refused.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        for file in [draft, *draft.rglob("*")] if draft.is_dir() else [draft]:
            _flush(file)
        if target.is_dir():  # a folder cannot be renamed over one that holds something
            target.rename(old)
        draft.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (draft, old):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _write(draft: Path, made: Converted, card: Mapping[str, Any]) -> None:
    if made.write is None:
        from editkit.training.artefact import Artefact

        rest = {key: value for key, value in card.items() if key != "name"}
        Artefact(card["name"], made.tensors or {}, card=rest).save(draft)
        return
    draft.mkdir()
    made.write(draft)
    (draft / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _settings(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    odd = [text for text, (key, equals, value) in zip(texts, pairs, strict=True) if not (key and equals and value)]
    if odd:
        raise UsageError(f"{odd[0]} is not of the form KEY=VALUE; convert takes one checkpoint at a time")
    return {key: value for key, _, value in pairs}


def _check_keys(settings: Mapping[str, str], layout: Layout) -> None:
    for key in settings:
        if key not in layout.settings:
            known = "; ".join(f"{name}: {about}" for name, about in layout.settings.items()) or "none"
            raise UsageError(
                f"{key}= is unknown for the layout {layout.name}.{suggestion(key, layout.settings)} It takes {known}"
            )


def _check_target(target: Path, made: Converted, force: bool) -> None:
    if (made.tensors is None) == (target.suffix == ".safetensors"):
        becomes = "a folder" if made.tensors is None else "one file that ends in .safetensors"
        raise UsageError(f"-o {target}: this checkpoint becomes {becomes}")
    _check_free(target, force)


def _check_free(target: Path, force: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise UsageError(f"{target} is already there; --force replaces it")
    ours = not target.is_symlink() and (target.is_file() if target.suffix == ".safetensors" else _made_here(target))
    if not ours:
        raise UsageError(f"{target} is not what editkit convert wrote, so --force does not replace it: give another -o")


def _made_here(folder: Path) -> bool:
    try:
        return "layout" in json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _figures(card: Mapping[str, Any]) -> str:
    shown = ((key.replace("_", " "), value) for key, value in card.items() if value is not None)
    return ", ".join(f"{key} {value:,}" if type(value) is int else f"{key} {value}" for key, value in shown)
