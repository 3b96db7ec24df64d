"""What `editkit data check` does: say what is wrong with a folder, and what a method lacks there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit.errors import UserError

if TYPE_CHECKING:
    from editkit.data.listing import Entry, Listing
    from editkit.data.published.known import Layout

# What a folder must hold for a method to be trained on it, by the input of an edit that the method takes.
FROM_INPUT = {
    "image": "images",
    "mask": "masks",
    "reference": "references",
    "references": "references",
    "reference_mask": "reference_masks",
    "sketch": "sketches",
    "segmentation": "labels",
    "instruction": "instructions",
}
TEXTS = {"captions": "text", "instructions": "instruction", "target_texts": "target"}  # what is a key of a line of metadata.jsonl
# Whether an item of a published data set holds them. An object is a mask, and its crop a reference.
HOLDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "captions": lambda item: bool(item["caption"]),
    "instructions": lambda item: bool(item.get("instruction")),
    "targets": lambda item: item.get("target") is not None,
    "target_texts": lambda item: bool(item.get("target_caption")),
    "masks": lambda item: item.get("mask") is not None or bool(item.get("object_captions")),
    "references": lambda item: bool(item.get("references") or item.get("object_captions")),
}
NAMED = 5  # pictures named in a line before "and more"


@dataclass(frozen=True)
class Finding:
    """One line of a check: "ok", "bad" (unreadable), "missing" or "note", and what was found."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind:<8}{self.text}"


def check_data(root: Path, method: str | None = None, *, conf: Sequence[Path] = ()) -> list[Finding]:
    """Read every file of a folder and say what is wrong with it, and what a method lacks there.

    The folder may have the layout of a published data set; the first line then says which.

    Args:
        method: name of a recipe; None checks the files alone.
        conf: folders of the user's own recipes.

    Returns:
        Findings; the folder is fine when none of them is "bad" or "missing".

    Raises:
        UserError: no such folder or recipe, or no picture in the folder that can be read.
    """
    wanted = needed(method, conf) if method else []
    from editkit.data.listing import listing
    from editkit.data.published.known import recognised

    layout = recognised(root)
    if layout is not None:
        return _published(root, layout, wanted, method or "")
    found = listing(root)
    problems = _problems(found.entries)
    findings = [Finding("bad", reason) for _, reason in found.bad] + [Finding("bad", reason) for reason in problems.values()]
    good = [entry for entry in found.entries if entry.key not in problems]
    findings += [Finding("note", text) for text in found.unused]
    findings.append(_counts(found, good))
    for name in wanted:
        findings.append(_missing(good, name, method or ""))
    return findings


def needed(method: str, conf: Sequence[Path] = ()) -> list[str]:
    """Return what a folder must hold to train a method: its card's `data`, else what follows from the card's `needs`.

    Raises:
        RecipeError: an unknown recipe.
    """
    from editkit.recipe_files import card_of, recipe_file

    card = card_of(method, recipe_file(method, conf))
    named = card.rest.get("data")
    names = named if isinstance(named, list) else [FROM_INPUT[name] for name in card.needs if name in FROM_INPUT]
    return list(dict.fromkeys(str(name) for name in names if name != "images"))


def _published(root: Path, layout: Layout, wanted: Sequence[str], method: str) -> list[Finding]:
    """Check a folder that has a published layout."""
    findings = [Finding("note", f"{root} is laid out like {layout.title}: {layout.chosen(root, wanted)}")]
    held: dict[str, set[str]] = {}
    counts = []
    module = layout.opened(root, size=64)
    for split in ("train", "validation", "test"):
        try:
            dataset = module.open(split)
        except UserError as error:
            findings.append(Finding("missing" if split == "train" else "note", f"{split}: {error}"))
            continue
        findings += [Finding("note", text) for text in dataset.source.notes]
        findings += [Finding("bad", text) for text in dataset.source.bad]
        before = len(held)
        for key, names in _read_all(dataset):
            if isinstance(names, UserError):
                findings.append(Finding("bad", str(names)))
            else:
                held[key] = names
        counts.append(f"{len(held) - before} {split}")
    findings.append(Finding("ok" if held else "missing", f"{len(held)} samples of {layout.title}: {', '.join(counts) or 'none'}"))
    findings = list(dict.fromkeys(findings))  # splits that share files find the same in them
    return findings + [_lacking(held, name, layout, method) for name in wanted]


def _read_all(dataset: Any) -> Iterator[tuple[str, set[str] | UserError]]:
    """Yield each key with the names of what its item holds, or with what is wrong with it."""
    from concurrent.futures import ThreadPoolExecutor

    def holds(index: int) -> set[str] | UserError:
        try:
            item = dataset.read(index)
        except UserError as error:
            return error
        return {name for name, has in HOLDS.items() if has(item)}

    with ThreadPoolExecutor() as pool:
        yield from zip(map(dataset.key, range(len(dataset))), pool.map(holds, range(len(dataset))), strict=True)


def _lacking(held: dict[str, set[str]], name: str, layout: Layout, method: str) -> Finding:
    """Say for how many samples of a published layout something is there."""
    if name not in layout.offers:
        return Finding("missing", f"{name}, which {method} needs: {layout.title} has none; {_elsewhere(name)}")
    return _verdict(list(held), [key for key, names in held.items() if name not in names], name, method, layout.offers[name])


def _elsewhere(name: str) -> str:
    from editkit.data.published.known import LAYOUTS

    others = ", ".join(f"data={layout.name} ({layout.title})" for layout in LAYOUTS if name in layout.offers)
    return f"expected one of {others}" if others else f"expected a plain folder of images/ and {name}/ (data=folder)"


def _problems(entries: Sequence[Entry]) -> dict[str, str]:
    """Read everything and return what is wrong, by the key of the picture it belongs to."""
    from concurrent.futures import ThreadPoolExecutor

    from editkit.data.folder import read_item

    def problem(entry: Entry) -> str | None:
        try:
            read_item(entry, size=8)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        answers = pool.map(problem, entries)
        return {entry.key: answer for entry, answer in zip(entries, answers, strict=True) if answer is not None}


def _counts(found: Listing, good: Sequence[Entry]) -> Finding:
    splits = ", ".join(f"{sum(e.split == split for e in good)} {split}" for split in ("train", "validation", "test"))
    return Finding("ok" if good else "missing", f"{len(good)} pictures in {found.root}: {splits}")


def _missing(entries: Sequence[Entry], name: str, method: str) -> Finding:
    lacking = [entry.key for entry in entries if not _has(entry, name)]
    return _verdict(entries, lacking, name, method, _remedy(name, lacking[0]) if lacking else "")


def _verdict(every: Sequence[Any], lacking: Sequence[str], name: str, method: str, remedy: str) -> Finding:
    if not lacking:
        return Finding("ok", f"{name}: there for all {len(every)} pictures")
    which = f"{', '.join(lacking[:NAMED])}{f' and {len(lacking) - NAMED} more' if len(lacking) > NAMED else ''}"
    text = f"{name}, which {method} needs: not there for {len(lacking)} of {len(every)} pictures ({which}); "
    return Finding("missing", text + remedy)


def _has(entry: Entry, name: str) -> bool:
    return bool(entry.line.get(TEXTS[name])) if name in TEXTS else bool(entry.files(name))


def _remedy(name: str, key: str) -> str:
    if name in TEXTS:
        return f'add {{"file_name": "{key}", "{TEXTS[name]}": "..."}} to metadata.jsonl'
    return f"put {Path(key).with_suffix('.png').name} into {name}/"
