"""`editkit invert --inverter all`: every inverter on the same pictures, as one table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from editkit.app.invert import SCALE, STEPS, Way, checked
from editkit.app.loaded import backbone_name, image_size, load_backbone
from editkit.app.markdown import check_marks, insert
from editkit.app.options import InvertOptions
from editkit.app.progress import Progress
from editkit.backbones.base import Backbone
from editkit.data.fit import fit
from editkit.data.photo import read_photo
from editkit.engine.invert import GUIDED, INVERTERS
from editkit.errors import UsageError
from editkit.recipe import compose
from editkit.types import EditRequest

HEADINGS = ("inverter", "guidance", "PSNR dB", "worst dB", "calls up", "calls down", "s/picture")


@dataclass(frozen=True)
class Row:
    """What an inverter did, as means over the pictures.

    Attributes:
        scale: guidance scale of what it reconstructs; 1 is none.
        psnr, worst: of the reconstructions in dB, their mean and the lowest.
        up, down: network calls of a picture, there and back.
        seconds: of a picture, there and back.
    """

    inverter: str
    scale: float
    psnr: float
    worst: float
    up: float
    down: float
    seconds: float

    def cells(self) -> list[str]:
        """Return the cells under HEADINGS."""
        figures = (f"{self.psnr:.1f}", f"{self.worst:.1f}", f"{self.up:.0f}", f"{self.down:.0f}", f"{self.seconds:.2f}")
        return [self.inverter, f"{self.scale:g}", *figures]


def tabulate_inverters(options: InvertOptions) -> int:
    """Invert pictures by every inverter that the backbone allows, print the table and return 0.

    Raises:
        UserError: an unreadable picture, an output (a table has none), a file without the marks.
    """
    if options.output is not None:
        raise UsageError("--inverter all prints a table and keeps no trajectories: leave out -o, or choose one inverter")
    if options.update is not None:
        check_marks(options.update, "inverters")
    pictures, bad = checked(options)
    cfg = compose(options.recipe_overrides(), conf_dirs=options.conf)
    backbone = load_backbone(cfg, device=options.device, dtype=options.dtype)
    request = EditRequest("", prompt=options.prompt, seed=options.seed)
    size = image_size(backbone)
    images = [fit(photo.size, size, options.fit).image(photo) for photo in map(read_photo, pictures.values())]
    batches = [slice(first, first + int(cfg.engine.batch_size)) for first in range(0, len(images), int(cfg.engine.batch_size))]
    names = [name for name in INVERTERS if name not in GUIDED or backbone.condition(request) is not None]
    rows = []
    with Progress(total=len(names)) as progress:
        for name in names:
            way = Way(backbone, INVERTERS[name](), backbone.inversion_levels(options.steps or STEPS), request)
            rows.append(_row(way, images, list(pictures), batches))
            progress.advance()
        for key, reason in bad.items():
            progress.note(f"left out: {key}: {reason}")
        progress.results.print(_table(rows))
    if options.update is not None:
        note = f"{len(images)} pictures, {options.steps or STEPS} steps, {backbone_name(cfg)}, {_machine(backbone)}."
        insert(options.update, "inverters", "\n".join([*_markdown(rows), "", note]))
    return 0


def _row(way: Way, images: Sequence[Tensor], keys: Sequence[str], batches: Sequence[slice]) -> Row:
    began = time.perf_counter()
    found = [one for batch in batches for one in way.invert(images[batch], keys[batch])]
    seconds = (time.perf_counter() - began) / len(images)
    quality = [one.psnr for one in found]
    calls = [sum(getattr(one, way_part) for one in found) / len(found) for way_part in ("up", "down")]
    scale = SCALE if way.inverter.name in GUIDED else 1.0
    return Row(way.inverter.name, scale, sum(quality) / len(quality), min(quality), *calls, seconds)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for n, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if n else "left", no_wrap=not n)
    for row in rows:
        table.add_row(*row.cells())
    return table


def _markdown(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|---|{'---:|' * (len(HEADINGS) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row.cells())} |"


def _machine(backbone: Backbone) -> str:
    if backbone.device.type == "cuda":
        return torch.cuda.get_device_name(backbone.device)
    return f"{torch.get_num_threads()} threads of a CPU"
