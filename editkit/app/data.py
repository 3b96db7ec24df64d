"""What `editkit data` does: render the toy world, check a folder for a method, show what training sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editkit.app.options import RecipeOptions, option
from editkit.errors import UsageError, UserError

if TYPE_CHECKING:
    from editkit.data.listing import Entry, Listing

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
TEXTS = {"captions": "text", "instructions": "instruction"}  # what is a key of a line of metadata.jsonl
NAMED = 5  # pictures named in a line before "and more"


@dataclass(kw_only=True)
class PreviewOptions(RecipeOptions):
    """The inputs of `editkit data preview`."""

    prompt: str | None = option("What the edit should show, for recipes that ask for it.")
    source_prompt: str | None = option("What the images show before the edit.")
    images: int = option("How many items to show.", default=16)
    output: Path = option("Picture to write.", default=Path("preview.png"), short="-o")


@dataclass(frozen=True)
class Finding:
    """One line of a check: "ok", "bad" (unreadable), "missing" or "note", and what was found."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind:<8}{self.text}"


def render_data(
    domain: str, n: int, out: Path, *, split: str = "train", size: int = 64, on_done: Callable[[int], None] | None = None
) -> Path:
    """Render pictures of the toy world into a folder; the same call again continues (see `editkit.data.layout.render`)."""
    from editkit.data.layout import render

    return render(domain, n, out, split=split, size=size, on_done=on_done)


def check_data(root: Path, method: str | None = None, *, conf: Sequence[Path] = ()) -> list[Finding]:
    """Read every file of a folder and say what is wrong with it, and what a method lacks there.

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


def preview(options: PreviewOptions) -> Path:
    """Write a sheet of the first items that a recipe's training reads, in its order and with its augmentation.

    Raises:
        UsageError: fewer than one item.
        RecipeError: what `compose` says.
        UserError: the data cannot be read or the picture not be written.
    """
    from editkit.app.sheet import sheet
    from editkit.data.files import write_png
    from editkit.recipe import build, compose
    from editkit.training.order import Order, Positioned

    if options.images < 1:
        raise UsageError(f"--images is {options.images}: show at least 1")
    prompts = {"prompt": options.prompt, "source_prompt": options.source_prompt}
    cfg = compose(options.recipe_overrides(), prompts=prompts, conf_dirs=options.conf)
    dataset: Any = build(cfg, "data").train_dataset()
    order = Order(len(dataset), batch_size=min(options.images, len(dataset)), seed=cfg.seed)
    read = Positioned(dataset, cfg.seed)
    picture = sheet([read[at] for at in next(iter(order))])
    write_png(options.output, picture, {"recipe": options.method, "preview": type(dataset).__name__, "items": len(dataset)})
    return options.output


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
    if not lacking:
        return Finding("ok", f"{name}: there for all {len(entries)} pictures")
    which = f"{', '.join(lacking[:NAMED])}{f' and {len(lacking) - NAMED} more' if len(lacking) > NAMED else ''}"
    text = f"{name}, which {method} needs: not there for {len(lacking)} of {len(entries)} pictures ({which}); "
    return Finding("missing", text + _remedy(name, lacking[0]))


def _has(entry: Entry, name: str) -> bool:
    return bool(entry.line.get(TEXTS[name])) if name in TEXTS else bool(entry.files(name))


def _remedy(name: str, key: str) -> str:
    if name in TEXTS:
        return f'add {{"file_name": "{key}", "{TEXTS[name]}": "..."}} to metadata.jsonl'
    return f"put {Path(key).with_suffix('.png').name} into {name}/"
