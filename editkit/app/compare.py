"""`editkit compare`: several methods on the same pictures, as one sheet, one table and one report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from editkit.app import markdown
from editkit.app.artefacts import by_method
from editkit.app.device import device_of
from editkit.app.editing import Edited, edit_batch
from editkit.app.grid import save_grid
from editkit.app.inputs import ALWAYS, Subject, check_inputs, subject
from editkit.app.loaded import Loaded, compose_for, load_editor, short_name
from editkit.app.numbers import check_numbers
from editkit.app.options import CompareOptions, EditOptions
from editkit.app.progress import Progress
from editkit.app.questions.face_judges import Judges, load_judges
from editkit.app.report import page
from editkit.app.tables import UNDEFINED
from editkit.app.worklist import Job, plan
from editkit.data.files import check_writable, write_atomic, write_png
from editkit.errors import UsageError, UserError
from editkit.metrics import clip as clip_metric
from editkit.metrics.identity import similarity
from editkit.metrics.images import eight_bit, mean, psnr

# Columns of the table after the method's name: heading and decimals, by figure.
COLUMNS = {
    "clip_direction": ("CLIP dir.", 2),
    "identity": ("identity", 3),
    "psnr_source": ("PSNR to source dB", 1),
    "reconstruction_psnr": ("reconstruction dB", 1),
    "seconds": ("s/edit", 2),
    "network_calls": ("calls/edit", 0),
}
NOTE = "CLIP direction and identity are read by the bundled toy networks, on toy backbones only."
SHOWN = 12  # pictures of the sheet and the report


@dataclass
class Entry:
    """What one method made.

    Attributes:
        subjects: the pictures as it saw them.
        edited: its results in the same order.
        seconds: per picture, with the inversion.
        toy: its backbone is a bundled one, so the bundled judges can read its pictures.
    """

    subjects: list[Subject] = field(default_factory=list)
    edited: list[Edited] = field(default_factory=list)
    seconds: float = 0.0
    toy: bool = False

    @property
    def images(self) -> Tensor:
        """The results at the model's size, as a PNG holds them, (N, 3, h, w)."""
        return eight_bit(torch.stack([one.image for one in self.edited]))

    @property
    def sources(self) -> Tensor:
        """What the method started from, (N, 3, h, w)."""
        return torch.stack([one.request.image for one in self.subjects if one.request.image is not None])


def compare(options: CompareOptions) -> int:
    """Run the command: a picture for each method and image, sheet.png, table.md, metrics.json, report.html; return 0.

    Raises:
        UserError: no method, no picture, an input that a method needs, weights of a method that is not compared.
    """
    names = _names(options)
    check_numbers(strength=[] if options.strength is None else [options.strength], steps=options.steps, samples=1)
    output = options.output or Path("runs") / f"compare-{'-'.join(names)}"
    check_writable(output)
    weights = by_method(options.weights, list(names))
    entries: dict[str, Entry] = {}
    keys: list[str] = []
    for name, method in names.items():
        jobs, loaded, toy = _prepared(options, name, method, weights[name])
        keys = [job.key for job in jobs]
        entries[name] = _run(options, loaded, jobs, toy)
        for job, owner, one in zip(jobs, entries[name].subjects, entries[name].edited, strict=True):
            target = output / f"{Path(job.key).with_suffix('')}.{name}.png"
            write_png(target, owner.finished(one.image).pil(), {**loaded.provenance, "key": job.key, "scores": one.scores})
    judges = load_judges(device_of(options.device)) if any(entry.toy for entry in entries.values()) else None
    figures = {name: measure(entry, judges, options) for name, entry in entries.items()}
    paths = _write(output, options, keys, entries, figures)
    Console(soft_wrap=True).print(_terminal(figures))
    for path in paths:
        print(path)
    return 0


def measure(entry: Entry, judges: Judges | None, options: CompareOptions) -> dict[str, float | None]:
    """Return the means over a method's pictures, by the names of `COLUMNS`; None where a figure is undefined."""
    source, images = entry.sources, entry.images
    found: dict[str, float | None] = dict.fromkeys(COLUMNS)
    found["seconds"] = entry.seconds
    found["psnr_source"] = mean(psnr(images, source)).value
    for name in ("reconstruction_psnr", "network_calls"):
        values = [one.scores[name] for one in entry.edited if name in one.scores]
        found[name] = sum(values) / len(values) if values else None
    if judges is not None and entry.toy:
        with torch.no_grad():
            found["identity"] = mean(similarity(judges.embed, source, images)).value
            if options.prompt:
                texts = judges.clip.text([options.source_prompt or "a face", options.prompt])
                towards = clip_metric.direction(judges.clip.image(source), judges.clip.image(images), texts[0], texts[1])
                found["clip_direction"] = mean(towards).value
    return {name: None if value is None or value != value else value for name, value in found.items()}


def _names(options: CompareOptions) -> dict[str, str]:
    """Return the methods by the short names that their files get."""
    if not options.methods:
        raise UsageError("compare needs methods: editkit compare asyrp clip-guided --image FILE --prompt 'a smiling face'")
    if options.image is None:
        raise UsageError("compare needs --image: a picture, or a folder of them")
    names = {short_name(method): method for method in options.methods}
    if len(names) < len(options.methods):
        raise UsageError(f"compare got a method twice: {' '.join(options.methods)}")
    return names


def _prepared(options: CompareOptions, name: str, method: str, weights: Sequence[str]) -> tuple[list[Job], Loaded, bool]:
    """Return one method's jobs, its editor, and whether it stands on a bundled backbone."""
    shared = {key: getattr(options, key) for key in ("image", "mask", "reference", "prompt", "source_prompt", "instruction")}
    own = EditOptions(method=method, backbone=options.backbone, conf=options.conf, landmarks=options.landmarks, **shared)
    cfg = compose_for(own, "compare")
    card = cfg.get("card") or {}
    needs, usable = tuple(card.get("needs") or ()), {*ALWAYS, *(card.get("needs") or ()), *(card.get("takes") or ()), "prompt"}
    loaded = load_editor(cfg, name, weights=weights, prompt=options.prompt, device=options.device, dtype=options.dtype)
    planned = plan(own, name=name, wants=usable)
    if planned.broken:
        key, reason = next(iter(planned.broken.items()))
        raise UserError(f"{key}: {reason}")
    jobs = [_of_use(job, usable) for job in planned.jobs]
    for job in jobs:
        check_inputs(name, tuple(dict.fromkeys((*needs, *loaded.editor.needs))), job.fields(), takes=tuple(usable))
    return jobs, loaded, str(cfg.backbone.get("path", "")).startswith("editkit:")


def _of_use(job: Job, usable: set[str]) -> Job:
    """Return a job without the inputs that are for the other methods."""
    files = {name: paths for name, paths in job.files.items() if name in usable}
    return Job(job.key, job.image, files, {name: text for name, text in job.texts.items() if name in usable}, job.output)


def _run(options: CompareOptions, loaded: Loaded, jobs: Sequence[Job], toy: bool) -> Entry:
    entry = Entry(toy=toy)
    settings: dict[str, Any] = {"how": options.fit, "steps": options.steps, "seed": options.seed}
    settings["whole_references"] = loaded.editor.whole_references
    entry.subjects = [subject(job.key, job.image, job.files, job.texts, loaded.size, **settings) for job in jobs]
    size = 1 if loaded.editor.per_image else loaded.batch_size
    with Progress(total=-(-len(jobs) // size), unit="batches") as progress:
        began = time.perf_counter()
        for start in range(0, len(jobs), size):
            results = edit_batch(loaded, entry.subjects[start : start + size], [options.strength])
            entry.edited += [ones[0] for ones in results]
            progress.advance()
        entry.seconds = (time.perf_counter() - began) / len(jobs)
    return entry


def _write(
    output: Path,
    options: CompareOptions,
    keys: Sequence[str],
    entries: Mapping[str, Entry],
    figures: Mapping[str, Mapping[str, float | None]],
) -> list[Path]:
    rows = list(_rows(entries))
    about = {"prompt": options.prompt, "instruction": options.instruction, "seed": options.seed, "images": len(keys)}
    gallery = [{"title": key, "images": row} for key, row in zip(keys, rows, strict=False)]
    texts = {
        "table.md": _markdown(figures),
        "metrics.json": json.dumps({**about, "methods": figures}, indent=1, allow_nan=False) + "\n",
        "report.html": page(
            "compare.html", about=about, gallery=gallery, headings=_headings(), rows=list(_cells(figures)), under=NOTE
        ),
    }
    for name, text in texts.items():
        write_atomic(output / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]
    sheet = save_grid(output / "sheet.png", [list(row.values()) for row in rows], columns=list(rows[0]))
    return [sheet, *(output / name for name in texts)]


def _rows(entries: Mapping[str, Entry]) -> Iterator[dict[str, Tensor]]:
    """Yield the first pictures: the source as the first method saw it, then each result."""
    first = next(iter(entries.values()))
    for i in range(min(SHOWN, len(first.edited))):
        yield {"source": first.sources[i]} | {name: entry.images[i] for name, entry in entries.items()}


def _headings() -> list[str]:
    return ["method", *(heading for heading, _ in COLUMNS.values())]


def _cells(figures: Mapping[str, Mapping[str, float | None]]) -> Iterator[list[str]]:
    for name, found in figures.items():
        cells = [UNDEFINED if found[column] is None else f"{found[column]:.{digits}f}" for column, (_, digits) in COLUMNS.items()]
        yield [name, *cells]


def _markdown(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    return f"{markdown.table(_headings(), _cells(figures))}\n\n{NOTE}\n"


def _terminal(figures: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table(caption=NOTE, caption_justify="left", show_edge=False)
    for place, heading in enumerate(_headings()):
        table.add_column(heading, justify="right" if place else "left")
    for cells in _cells(figures):
        table.add_row(*cells)
    return table
