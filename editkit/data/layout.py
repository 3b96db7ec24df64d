"""Write pictures of the toy world as a folder that `folder` reads: images/, labels/ (indexed PNG), metadata.jsonl.

A domain's further layers (a scene's instances/ and sketches/) get folders of their own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from editkit.data.files import check_writable, write_atomic
from editkit.data.label_map import indexed
from editkit.data.published.write import find_writer, write
from editkit.data.toyworld.samples import SPLITS, Domain, Sample
from editkit.data.toyworld.world import DOMAINS
from editkit.errors import UsageError, UserError, suggestion


def render(
    domain: str,
    n: int,
    out: str | Path,
    *,
    split: str = "train",
    size: int = 64,
    layout: str = "folder",
    on_done: Callable[[int], None] | None = None,
) -> Path:
    """Render the first n samples of a split into a folder.

    Pictures that are there already are kept, so an interrupted call goes on where it was, and a larger n adds the rest.
    A file is never half-written; metadata.jsonl comes last, when everything that it names is there.

    Args:
        layout: "folder", or that of a published data set, a name of `published.write.WRITERS`.
        on_done: called with the number of samples that are finished.

    Returns:
        The folder.

    Raises:
        UsageError: an unknown domain, split or layout, or a count or size that is no positive number.
        UserError: the folder cannot be written, or holds something else.
    """
    world = find_domain(domain)
    if split not in SPLITS:
        raise UsageError(f"the toy world has no split {split!r}.{suggestion(split, SPLITS)} There are: {', '.join(SPLITS)}")
    if n < 1 or size < 8:
        raise UsageError(f"give at least 1 picture of 8 pixels a side, got {n} of {size}")
    folder = Path(out).expanduser()
    what: dict[str, object] = {"domain": domain, "split": split, "size": size, "parts": list(world.parts)}
    if layout == "folder":
        check_writable(folder)
        _samples(folder, world, split, _claim(folder, "dataset.json", what, n), size, on_done)
        return folder
    writer = find_writer(layout, domain, split)
    check_writable(folder)
    card = f"dataset-{split}.json" if writer.parts else "dataset.json"
    write(writer, folder, domain, split, _claim(folder, card, {**what, "layout": layout}, n), size, on_done)
    return folder


def find_domain(name: str) -> Domain:
    """Return a domain of the toy world. Raises UsageError for an unknown one."""
    if name not in DOMAINS:
        raise UsageError(f"the toy world has no domain {name!r}.{suggestion(name, DOMAINS)} There are: {', '.join(DOMAINS)}")
    return DOMAINS[name]


def _claim(folder: Path, name: str, what: dict[str, object], n: int) -> int:
    """Write down in a file what the folder holds, or check that it is the same; return how many samples it is to have.

    Splits that share a folder have files of their own, and need the same layout.
    """
    card = folder / name
    if card.exists():
        seen = json.loads(card.read_text(encoding="utf-8"))
        n = max(n, int(seen.pop("count", 0)))
        if seen != what:
            differs = next(key for key in {**what, **seen} if seen.get(key) != what.get(key))
            raise UserError(
                f"{folder} holds pictures with {differs} {seen.get(differs)}, not {what.get(differs)}: choose another folder"
            )
    elif any(folder.iterdir()) and what.get("layout", "folder") not in _layouts(folder):
        raise UserError(f"{folder} is not empty and was not written by `editkit data render`: choose another folder")
    _write(card, json.dumps({**what, "count": n}, indent=2).encode())
    return n


def _layouts(folder: Path) -> set[str]:
    """Return the layouts of the splits that share a folder."""
    cards = (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("dataset-*.json"))
    return {card.get("layout", "folder") for card in cards}


def _samples(folder: Path, world: Domain, split: str, n: int, size: int, on_done: Callable[[int], None] | None) -> None:
    lines = []
    for index in range(n):
        sample = world.sample(split, index, size)
        image = folder / "images" / f"{index:06d}.png"
        if not image.exists():
            # The picture comes second: where it is, its labels and layers are too.
            _write_png(folder / "labels" / image.name, indexed(sample.labels))
            for name, layer in sample.layers.items():
                _write_png(folder / name / image.name, Image.fromarray(layer))
            _write_png(image, Image.fromarray(sample.image))
        lines.append(json.dumps(_line(sample, image.name)))
        if on_done is not None:
            on_done(index + 1)
    _write(folder / "metadata.jsonl", ("\n".join(lines) + "\n").encode())


def _line(sample: Sample, name: str) -> dict[str, object]:
    return {
        "file_name": f"images/{name}",
        "text": sample.caption.text,
        "claims": sample.caption.claims,
        "factors": sample.factors,
        "hidden": [factor for factor, shown in sample.visibility.items() if not shown],
        "rendered_from": dataclasses.asdict(sample.rendered_from),
        **sample.notes,
    }


def _write_png(path: Path, picture: Image.Image) -> None:
    write_atomic(path, lambda file: picture.save(file, "PNG"))


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, lambda file: file.write(data))
